"""Benchmarks: ratios against a peer or a baseline, measured alternately in one run and written to RESULTS.md."""
