"""`harness adapters`: list the adapters, check one, write the page about them."""
