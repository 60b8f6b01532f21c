"""Staged adaptation of language models: train, evaluate what was gained and lost, compare methods."""

__version__ = "0.1.0"
