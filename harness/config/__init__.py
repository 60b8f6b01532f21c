"""What suites and studies may say. Imports no torch."""
