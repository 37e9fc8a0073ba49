"""What training and inference share: loading, prompts, batches, attention, processes."""
