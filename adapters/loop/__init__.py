"""The training loop that the methods share."""
