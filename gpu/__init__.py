"""Devices that augment and stream splats: NumPy, torch, Vulkan. Not part of this release."""
