"""Training of multi-exit networks: losses, batches and the training loop."""
