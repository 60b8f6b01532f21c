"""Engines: generation, and weights handed to vLLM."""
