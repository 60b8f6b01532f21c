"""Evaluation of checkpoints: answers, grades, cells, and what makes cells comparable."""
