"""The shipped shader is what its source says. Run as a script, this compiles it anew."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mldb.gpu.vulkan.device import VulkanDevice
from mldb.gpu.vulkan.pipeline import shader_code
from tests.support.vulkan import Batch, batch_of, device_of, results_of

FLAGS = ("--target-env=vulkan1.2", "-O")
FOLDER = Path(str(files("mldb.gpu.shaders"))).resolve()
SOURCE, CODE, RECORD = (FOLDER / f"langevin.{ending}" for ending in ("comp", "spv", "json"))


def _fingerprint() -> str:
    return hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()


def _compiler_version(glslc: str) -> str:
    done = subprocess.run([glslc, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _compile(glslc: str, target: Path) -> None:
    subprocess.run([glslc, *FLAGS, str(SOURCE), "-o", str(target)], check=True)


def test_shipped_code_belongs_to_the_shipped_source() -> None:
    record = json.loads(RECORD.read_text())
    assert record["sha256"] == _fingerprint(), "run `python -m tests.gpu.test_shaders`"
    assert record["flags"] == list(FLAGS)
    assert record["code_sha256"] == hashlib.sha256(shader_code()).hexdigest()


def test_code_is_spirv_and_reads_as_package_data() -> None:
    code = shader_code()
    assert code == CODE.read_bytes()
    assert int.from_bytes(code[:4], "little") == 0x07230203  # the magic number of SPIR-V
    assert len(code) % 4 == 0


@pytest.mark.slow
def test_compiled_again_it_is_valid_and_gives_the_same_bits(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    glslc, validator = shutil.which("glslc"), shutil.which("spirv-val")
    if glslc is None or validator is None:
        pytest.skip("glslc and spirv-tools are not installed")
    fresh = tmp_path / "langevin.spv"
    _compile(glslc, fresh)
    subprocess.run([validator, "--target-env", "vulkan1.2", str(fresh)], check=True)
    if json.loads(RECORD.read_text())["compiler"] == _compiler_version(glslc):
        assert fresh.read_bytes() == shader_code()
    batch = batch_of(rng, rows=24, dim=64, neighbours=4)
    with_shipped = _results(device_of(), batch)
    monkeypatch.setattr("mldb.gpu.vulkan.pipeline.shader_code", fresh.read_bytes)
    with_fresh = _results(device_of(), batch)
    assert with_shipped.keys() == with_fresh.keys()
    for name, value in with_shipped.items():
        assert value.tobytes() == with_fresh[name].tobytes(), name


def _results(device: VulkanDevice, batch: Batch) -> dict[str, npt.NDArray[Any]]:
    try:
        return results_of(device, batch)
    finally:
        device.close()


def build() -> None:
    """Compile the shader and write the record beside it."""
    glslc = shutil.which("glslc")
    if glslc is None:
        raise SystemExit("glslc is not installed")
    _compile(glslc, CODE)
    record = {
        "sha256": _fingerprint(),
        "flags": list(FLAGS),
        "code_sha256": hashlib.sha256(CODE.read_bytes()).hexdigest(),
        "compiler": _compiler_version(glslc),
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    build()
