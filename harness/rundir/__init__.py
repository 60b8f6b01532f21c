"""The run directory, the only state of a run: its schema, and how its files are written, read and checked."""
