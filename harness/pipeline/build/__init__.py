"""Models of a run: from a folder, the hub, or built from scratch."""
