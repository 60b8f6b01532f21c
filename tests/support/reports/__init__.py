"""Run directories, studies and records that tests write, and what is read of pages and figures."""
