"""What suites and studies may contain, and how they are read. Imports no torch."""
