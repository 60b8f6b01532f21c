"""The processes of a run: those that train a stage together, servers of a teacher, and how all of them end."""
