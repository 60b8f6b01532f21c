"""Plan a suite's size before its runs start: variance by source, power, cheapest designs."""
