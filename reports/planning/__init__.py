"""What a suite can resolve before its runs start: variance by source, power, cheapest designs."""
