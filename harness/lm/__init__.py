"""Language models: chat, checkpoints, batches, log-probabilities, optimiser."""
