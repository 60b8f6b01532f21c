"""Evaluation of checkpoints: draw answers, grade them, store them as cells, and decide which cells are comparable."""
