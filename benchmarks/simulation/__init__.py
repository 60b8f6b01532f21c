"""Simulated studies whose truth is known, and how often intervals and verdicts are right on them."""
