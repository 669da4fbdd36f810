"""Devices that augment splats: the NumPy reference, torch on CPU and CUDA, Vulkan.

One protocol (``device.py``), one counter generator (``philox.py``), one contract suite for all of
them. Nothing here knows the log; rows and keys are passed in.
"""
