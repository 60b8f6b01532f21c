"""What a running process records and shows: its session, progress and trackers, without secrets."""
