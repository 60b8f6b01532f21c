"""The report over a set of runs."""
