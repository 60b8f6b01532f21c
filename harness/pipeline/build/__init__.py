"""Models of a run: found in a folder, downloaded from the hub, or built from scratch."""
