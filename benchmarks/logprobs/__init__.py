"""Benchmarks of log-probabilities without full logits: time and memory of our code, of dense code and of TRL's."""
