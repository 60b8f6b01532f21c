"""Task files in lm-eval's format, their graders and generators, and the suites built from them."""

# Part of continual-harness: the command line looks for this line, see harness/cli/own_packages.py.
