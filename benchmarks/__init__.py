"""Benchmarks: ratios against a peer or a baseline, measured in turn in one run and written to RESULTS.md."""
