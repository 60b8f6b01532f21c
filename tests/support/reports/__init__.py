"""Run directories, studies and records that tests write, and readers of pages and figures."""
