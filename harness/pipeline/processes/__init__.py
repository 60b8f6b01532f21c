"""The processes of a run: those that train a stage together, and how they end."""
