"""Plan a suite's size before its runs start: variance by source, power, cheapest designs."""

EFFECT = 3.0  # points; the difference to find, where none is named
