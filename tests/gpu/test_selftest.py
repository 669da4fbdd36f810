"""The self-test reports what is there, goes on after a failure, and can fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mldb.errors import InvalidValueError
from mldb.gpu.selftest import cuda as selftest_cuda
from mldb.gpu.selftest import items as selftest
from mldb.gpu.selftest import rates as selftest_rates
from mldb.gpu.selftest.lines import Line
from mldb.gpu.vulkan.device import VulkanDevice
from tests.support.vulkan import opened


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less of everything that takes time, and no measurements."""
    with opened(batch_rows=64):
        pass
    monkeypatch.setattr(selftest_cuda, "BATCHES", 20)
    monkeypatch.setattr(
        selftest_rates, "measure_rates", lambda *_: iter([("a rate", 2.0, "rows/s")])
    )


def test_every_item_reports_and_none_fails(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    done = CliRunner().invoke(selftest.main, ["--json", str(target)])
    assert done.exit_code == 0, done.output
    lines = json.loads(target.read_text())
    items = {line["item"] for line in lines}
    assert items >= {"devices", "known answer", "words", "normals", "chains", "export"}
    assert items >= {"batches", "import", "rate", "memory"}
    assert not [line for line in lines if line["status"] == "FAIL"]
    assert all(line["text"] for line in lines)
    assert len(done.output.splitlines()) >= len(lines)
    limits = next(line for line in lines if line["item"] == "devices")["figures"]["limits"]
    assert limits["texel_range"] > 0


def test_wrong_numbers_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = VulkanDevice.words

    def wrong(self: VulkanDevice, *arguments: Any) -> Any:
        return real(self, *arguments) ^ np.uint32(1)

    monkeypatch.setattr(VulkanDevice, "words", wrong)
    monkeypatch.setattr(selftest, "ITEMS", (selftest.against_reference,))
    done = CliRunner().invoke(selftest.main, [])
    assert done.exit_code == 1
    assert "FAIL  known answer" in done.output
    assert "FAIL  words" in done.output
    assert "PASS  chains" in done.output


def test_an_item_that_breaks_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: VulkanDevice) -> Iterator[Line]:
        yield Line("broken", "PASS", "so far")
        raise InvalidValueError("broken here")

    monkeypatch.setattr(selftest, "ITEMS", (broken, selftest.figures))
    found: list[Line] = []
    assert selftest.run_items(None, found.append) == found
    assert [line.status for line in found] == ["PASS", "FAIL", "INFO", "SKIP"]
    assert "broken here" in found[1].text


def test_a_device_that_is_not_there_is_said_so() -> None:
    done = CliRunner().invoke(selftest.main, ["--device", "no such device"])
    assert done.exit_code == 1
    assert "no such device" in done.output


@pytest.mark.parametrize("kind", ["self", "mixture"])
def test_the_rival_computes_the_same_kind_of_rows(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(selftest_rates, "TABLE_ROWS", 50)
    parts: Any = selftest_rates.torch_batch(kind, 10, "cpu", chunk=4)()
    ends = torch.cat(parts)
    assert ends.shape == (10, selftest_rates.DIM)
    start = torch.from_numpy(selftest_rates.unit_rows(10, selftest_rates.DIM))
    assert torch.allclose(ends.norm(dim=1), torch.ones(10), atol=1e-5)
    # Five steps of noise sqrt(2 eps) in 640 dimensions: cosines of about 0.8.
    assert ((ends * start).sum(1) > 0.6).all()
    assert ((ends * start).sum(1) < 0.95).all()
