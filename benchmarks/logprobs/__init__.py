"""Log-probabilities without logits: time and memory of our code, of dense code and of TRL's."""
