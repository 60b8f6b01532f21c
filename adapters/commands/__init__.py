"""The command `harness adapters`: list the adapters, show one, check one, write the page about all of them."""
