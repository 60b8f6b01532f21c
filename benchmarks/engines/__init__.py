"""Benchmarks of engines: generation, and the hand-over of weights to vLLM."""
