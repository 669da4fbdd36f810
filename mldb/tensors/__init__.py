"""Tensors: to bytes and back, in every layout, lazily and in blocks."""
