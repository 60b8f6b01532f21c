"""What a training writes while it runs: snapshots to go on from, and the log of its rollouts."""
