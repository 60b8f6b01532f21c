"""Staged adaptation of language models: train, evaluate what was gained and lost, compare methods."""

__version__ = "0.1.0"

# Part of continual-harness: the command line looks for this line, see harness/cli/own_packages.py.
