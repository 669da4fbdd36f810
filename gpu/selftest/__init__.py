"""``python -m mldb.gpu.selftest``: what the Vulkan device of this machine can do, item by item."""
