"""What a running process records of itself and shows: session, progress, trackers, without secrets."""
