"""The staged pipeline: prepare, evaluate the start, then adapt and evaluate, stage after stage."""
