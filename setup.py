"""Build the compiled twin of the short paths, where that is possible; the rest is pyproject.toml.

``optional=True``: without a compiler the installation goes on and mldb runs in Python alone, with
the same bytes on disk. xxHash is compiled in where the header of Debian's libxxhash-dev is found;
elsewhere the functions of the ``xxhash`` package are called.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
NATIVE = Path("log/native")  # setuptools wants paths relative to this file
HEADERS = ("/usr/include", "/usr/local/include", f"{sys.prefix}/include")


def _version() -> str:
    """The version of mldb, which the module is compared with when it is loaded."""
    import tomllib

    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def _included() -> list[str]:
    return [path.name for path in (ROOT / NATIVE).iterdir() if path.suffix in (".pxi", ".h")]


def _extensions() -> list[Extension]:
    """The module, or nothing where it would be refused: without a global lock, big-endian."""
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.byteorder != "little":
        return []
    macros: list[tuple[str, str | None]] = [
        ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
        ("MLDB_VERSION", f'"{_version()}"'),
    ]
    found = [folder for folder in HEADERS if Path(folder, "xxhash.h").is_file()]
    if found:
        macros.append(("MLDB_XXHASH", "1"))
    extension = Extension(
        "mldb.log.native._native",
        [str(NATIVE / "_native.pyx"), str(NATIVE / "hash_avx2.c")],
        depends=[str(NATIVE / name) for name in sorted(_included())],
        include_dirs=[np.get_include(), str(NATIVE), *found[:1]],
        define_macros=macros,
        extra_compile_args=["-O3", "-g0", "-fno-strict-aliasing", "-fvisibility=hidden"],
        extra_link_args=["-Wl,-s"] if sys.platform == "linux" else [],
    )
    directives = {"language_level": 3, "boundscheck": False, "wraparound": False}
    made = cythonize([extension], compiler_directives=directives, build_dir="build/cython")
    for extension in made:
        extension.optional = True  # cythonize makes new ones, and leaves this out
    return list(made)


setup(ext_modules=_extensions())
