"""Tests on real vLLM."""
