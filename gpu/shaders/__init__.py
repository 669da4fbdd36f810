"""Vulkan compute shaders, as source and as SPIR-V. Not part of this release."""
