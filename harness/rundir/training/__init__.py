"""What a stage writes while it trains: snapshots to continue from, and the log of its rollouts."""
