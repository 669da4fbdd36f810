"""Batches for a training loop, resumable to the batch."""
