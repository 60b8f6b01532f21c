"""What scaling out costs and brings: processes, servers, workers."""
