"""Attacks on runs and inputs with a count: `make soak` tries many, the tests a few of each."""
