"""The weights that a stage trains: the student's own, master weights, or shards over several processes."""
