"""The engine of host memory: kernels compiled by numba, run on a few threads."""
