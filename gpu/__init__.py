"""Reserved for devices that augment and stream splats: NumPy, torch, Vulkan. None exists yet."""
