"""Language models: chat templates, checkpoints, batches, log-probabilities, optimiser, requests to servers."""
