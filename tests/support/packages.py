"""Builds and installations of mldb in folders of their own, as a user's pip makes them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_PARTS: Final = ("mldb", "log", "compaction", "gpu", "tools")
_FILES: Final = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
_LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", "*.so", "build", "*.egg-info")
_PIP: Final = ("-m", "pip", "--quiet", "--disable-pip-version-check")
NO_COMPILER: Final = {"CC": "/bin/false", "CXX": "/bin/false"}

_USE: Final = """
import sys, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import numpy as np, mldb
    with mldb.open(sys.argv[1]) as db:
        with db.transaction(epoch=1) as txn:
            for number in range(50):
                txn.store_tensor(f"t{number}", np.full(1024, number, np.float32), {"n": number})
        db.lake("l", dim=4).add_splats(np.eye(4))
    with mldb.open(sys.argv[1], mode="r") as db:
        assert all(db[f"t{n}"].tolist() == [n] * 1024 for n in range(50))
        assert np.array_equal(db.lake("l").get([3, 0])["mu"], np.eye(4)[[3, 0]])
        assert db.verify().ok
        print(db.stats()["native"])
print(mldb.__file__)
print([str(item.message) for item in said if item.category.__name__ == "NativeWarning"])
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What an installed mldb said of itself: what runs, where it lies, and its warnings."""

    native: str
    place: Path
    warnings: list[str]


def clean_copy(target: Path) -> Path:
    """Copy what is packed, and nothing that was built, into a new folder."""
    for part in _PARTS:
        shutil.copytree(ROOT / part, target / part, symlinks=True, ignore=_LEFT_OUT)
    for name in _FILES:
        shutil.copy(ROOT / name, target / name)
    return target


def ran(command: list[str], cwd: Path, changes: Mapping[str, str]) -> str:
    """Run Python in a folder; return what it printed. A failure is raised with all it said."""
    left_out = ("PYTHONPATH", "MLDB_PURE")  # what these tests say themselves
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**environment, **changes},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built_sdist(source: Path, target: Path) -> Path:
    """Pack the sources."""
    target.mkdir()
    code = "import sys; from setuptools import build_meta as made; made.build_sdist(sys.argv[1])"
    ran(["-c", code, str(target)], source, {})
    (path,) = target.glob("*.tar.gz")
    return path


def built_wheel(source: Path, target: Path, changes: Mapping[str, str]) -> tuple[Path, str]:
    """Build a wheel of a folder or an sdist, with what is installed here, and say how long."""
    target.mkdir()
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(target))
    start, before = time.perf_counter(), _of_children()
    ran([*_PIP, "wheel", *options, str(source)], target, changes)
    (path,) = target.glob("*.whl")
    seconds, busy = time.perf_counter() - start, _of_children() - before
    return path, f"{seconds:.1f} s, {busy:.1f} s of a processor"


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def built_tree(source: Path, target: Path, changes: Mapping[str, str]) -> Path:
    """Build what a wheel holds, without pip, and return its folder."""
    ran(["setup.py", "-q", "build", "--build-lib", str(target)], source, changes)
    return target


def installed(wheel: Path, target: Path) -> Path:
    """Install a wheel into a folder, and return it."""
    options = ("--no-deps", "--no-index", "--target", str(target))
    ran([*_PIP, "install", *options, str(wheel)], target.parent, {})
    return target


def used(folder: Path, store: Path, changes: Mapping[str, str] | None = None) -> Used:
    """Store and read with an installed mldb, in a process that finds no other one."""
    paths = {"PYTHONPATH": str(folder)}
    native, place, said = ran(
        ["-P", "-c", _USE, str(store)], folder, paths | dict(changes or {})
    ).splitlines()
    assert Path(place).is_relative_to(folder), f"{place} was used instead of {folder}"
    return Used(native, Path(place).parent, [said] if said != "[]" else [])


def native_parts(wheel: Path) -> dict[str, int]:
    """The files of the compiled module in a wheel, with the bytes that each takes of it."""
    with zipfile.ZipFile(wheel) as packed:
        return {
            info.filename: info.compress_size
            for info in packed.infolist()
            if info.filename.startswith("mldb/log/native/")
        }
