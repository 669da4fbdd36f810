"""Reserved for Vulkan compute shaders, as source and as SPIR-V. None exists yet."""
