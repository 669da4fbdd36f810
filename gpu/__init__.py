"""Devices that augment splats: the NumPy reference, torch on CPU and CUDA, Vulkan.

One protocol (``device.py``), one counter generator (``mldb.noise.philox``), one contract suite for
all of them. ``reference.py`` is the device of NumPy, ``torch_device.py`` that of PyTorch, with the
engines in ``cpu/`` and ``cuda/``, ``vulkan/`` has its own; ``select.py`` chooses. Nothing here
reads a store; rows and keys are passed in.
"""
