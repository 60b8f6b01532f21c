"""Tests of the reports, on synthetic run directories whose numbers are known."""
