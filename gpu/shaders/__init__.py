"""The compute shader, as source (``langevin.comp``) and as SPIR-V (``langevin.spv``).

The SPIR-V is built with pinned flags and shipped; nothing is compiled at run time. Beside it,
``langevin.json`` holds the SHA-256 of the source's bytes followed by the flags, the flags, and the
version of the compiler. A test compares them, and compiles again where ``glslc`` is installed:

    glslc --target-env=vulkan1.2 -O langevin.comp -o langevin.spv
    python -m tests.gpu.test_shaders            compiles and writes both files
"""
