"""Kernels of the CPU, compiled by numba."""
