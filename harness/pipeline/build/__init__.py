"""Models: where they come from, how small ones are built from scratch, and their tokenizers."""
