"""The engine of CUDA: torch operations, which need no numba on a CPU either; and its runtime."""
