"""Tables, figures and the HTML report, all derived from run directories."""

# Part of continual-harness: the command line looks for this line, see harness/cli/own_packages.py.
