"""Run directories as tidy frames and tables."""
