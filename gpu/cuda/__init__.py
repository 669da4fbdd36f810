"""CUDA: its runtime, and batches as torch operations."""
