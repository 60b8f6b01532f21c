"""Trainers with a loop of their own: TRL, and a command of the user."""
