"""sdist and wheel, from a clean folder, with a compiler and without: what is installed runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mldb.log import native
from tests.support.packages import (
    NO_COMPILER,
    Used,
    built_sdist,
    built_tree,
    built_wheel,
    clean_copy,
    installed,
    native_parts,
    used,
)

GROWTH_BYTES = 300 << 10
"""So much may the compiled module take of a wheel: 0.3 MiB."""

pytest.importorskip("Cython")
has_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("cc") is None, reason="there is no compiler"
)


def native_folder(folder: Path) -> Path:
    return folder / "mldb/log/native"


def check_without(folder: Path, tmp_path: Path) -> None:
    """Nothing was compiled: it says so, without a warning, and works."""
    assert not list(native_folder(folder).glob("*.so"))
    assert used(folder, tmp_path / "run") == Used("off: not built", folder / "mldb", [])


@pytest.mark.slow
def test_without_a_compiler_it_is_built_and_runs_alone(tmp_path: Path) -> None:
    """And a module that lies there and is of another version is refused, with one warning."""
    source = clean_copy(tmp_path / "source")
    # It failed: what says that the module may be missing did not come through Cython.
    folder = built_tree(source, tmp_path / "built", NO_COMPILER)
    check_without(folder, tmp_path)
    stub = native_folder(folder) / "_native.py"
    stub.write_text(f"VERSION = '0.0.9'\nINTERFACE = {native.INTERFACE}\n")
    found = used(folder, tmp_path / "run again")
    assert found.native.startswith(f"{native.REFUSED}is of version 0.0.9")
    assert [text.count("Install mldb anew") for text in found.warnings] == [1]


@pytest.mark.large
@has_compiler
def test_with_a_compiler_the_sdist_and_the_wheel_bring_the_module(tmp_path: Path) -> None:
    source = clean_copy(tmp_path / "source")
    sdist = built_sdist(source, tmp_path / "sdists")
    shutil.rmtree(source)  # what the sdist lacks is nowhere else
    wheel, took = built_wheel(sdist, tmp_path / "wheels", {})
    parts = native_parts(wheel)
    (module,) = [name for name in parts if name.endswith(".so")]
    print(
        f"sdist {sdist.stat().st_size:,} bytes; wheel {wheel.stat().st_size:,} bytes in "
        f"{took}, of which the module takes {sum(parts.values()):,} bytes "
        f"({parts[module]:,} compiled, {len(parts)} files)"
    )
    assert sum(parts.values()) <= GROWTH_BYTES
    folder = installed(wheel, tmp_path / "installed")
    assert used(folder, tmp_path / "run").native.startswith("on")
    alone = used(folder, tmp_path / "run alone", {"MLDB_PURE": "1"})
    assert alone.native == "off: MLDB_PURE is set"
    assert not alone.warnings


@pytest.mark.large
@pytest.mark.parametrize("how", ["no program of that name", "one that fails"])
def test_an_sdist_without_a_compiler_is_installed_and_runs_alone(how: str, tmp_path: Path) -> None:
    source = clean_copy(tmp_path / "source")
    sdist = built_sdist(source, tmp_path / "sdists")
    shutil.rmtree(source)
    empty = tmp_path / "no programs"
    empty.mkdir()
    changes = NO_COMPILER if how == "one that fails" else {"PATH": str(empty)}
    wheel, _ = built_wheel(sdist, tmp_path / "wheels", changes)
    assert not [name for name in native_parts(wheel) if name.endswith(".so")]
    check_without(installed(wheel, tmp_path / "installed"), tmp_path)


@pytest.mark.large
@has_compiler
def test_a_compiled_module_of_another_version_is_refused_with_one_warning(tmp_path: Path) -> None:
    """An upgrade that left the old one beside the new Python."""
    source = clean_copy(tmp_path / "source")
    project = source / "pyproject.toml"
    text = project.read_text("utf-8")
    other = re.sub(r'^version = ".*"$', 'version = "9.9.9"', text, flags=re.MULTILINE)
    project.write_text(other, "utf-8")
    (old,) = built_tree(source, tmp_path / "old", {}).rglob("_native*.so")
    wheel, _ = built_wheel(clean_copy(tmp_path / "new"), tmp_path / "wheels", NO_COMPILER)
    folder = installed(wheel, tmp_path / "installed")
    shutil.copy(old, native_folder(folder) / old.name)
    found = used(folder, tmp_path / "run")
    assert found.native.startswith(f"{native.REFUSED}is of version 9.9.9")
    assert [text.count("Install mldb anew") for text in found.warnings] == [1]
    alone = used(folder, tmp_path / "run alone", {"MLDB_PURE": "1"})
    assert not alone.warnings
