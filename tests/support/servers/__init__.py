"""Servers that tests start, the faults that they can have, and what teachers' scores are compared with."""
