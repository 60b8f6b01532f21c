"""Triton kernels of the output layer, and the passes over tiles of logits that call them."""
