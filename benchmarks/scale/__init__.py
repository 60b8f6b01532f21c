"""Benchmarks of scaling out: processes, servers, workers."""
