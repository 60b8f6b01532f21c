"""Weights handed to vLLM servers over the network, by vLLM's own weight transfer."""
