"""Trainers from outside: TRL, and a command of the user's own."""
