"""The compiled module and Python alone, through the same histories: the same bytes, the same reads.

Each history is done in both modes under one clock and with the same ids. All files are compared
byte for byte, what every call said, and then all that can be read, by every way of verifying, in
both modes; at last once more with one byte turned, where the errors must be the same.
"""

from __future__ import annotations

import ast
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log import native
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import FileSystem
from mldb.options import Verify
from tests.support.parts import examples
from tests.support.twin_reads import Spy, damaged, everything, first_difference, laid_out
from tests.support.twins import Step, done, running, steps

pytestmark = [
    pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}"),
    pytest.mark.slow,
]

OF_THE_CHECK = {"check64", "digest128"}
"""What is called when the module is loaded, and by nothing else."""
VERIFY: tuple[Verify, ...] = ("first", "always", "never")
PRIVATE: dict[str, Any] = {"verify": "first", "arrays": "private"}
UNMEASURED = ("LOCK", "GATE", "readers/")
"""Files that hold nothing."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mldb")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Counts what is asked of the compiled module meanwhile."""
    found = Spy(native.twin)
    monkeypatch.setattr(native, "twin", found)
    return found


def compare(history: list[Step], seed: int, folder: Path | None, counts: Counter[str]) -> None:
    """Do one history in both modes and compare everything."""
    stored: list[dict[str, bytes]] = []
    said: list[list[Any]] = []
    for compiled in (False, True):
        run = done(history, seed, folder, compiled=compiled)
        files = run.files()
        stored.append({name: files[name] for name in files if not name.startswith(UNMEASURED)})
        said.append(run.told)
        if folder is not None:
            shutil.rmtree(folder)
    assert not first_difference(*said), first_difference(*said)
    assert stored[0].keys() == stored[1].keys()
    for name, data in stored[0].items():
        assert data == stored[1][name], f"{name} differs, of {len(data)} bytes"
    counts["histories"] += 1
    counts["steps"] += len(history)
    counts["refused"] += sum(_is_error(item) for _, item in said[0][:-1])
    counts["files"] += len(stored[0])
    counts["bytes"] += sum(map(len, stored[0].values()))
    others: list[dict[str, Any]] = [{"verify": "always"}, {"verify": "never"}, PRIVATE]
    for options in ({"verify": "first"}, others[seed % len(others)]):
        _compare_reads(stored[0], folder, counts, "reads", **options)
    turned = damaged(stored[0], seed)
    _compare_reads(turned, folder, counts, "reads of damage", verify=VERIFY[seed % 2])


def _compare_reads(
    files: dict[str, bytes], folder: Path | None, counts: Counter[str], what: str, **options: Any
) -> None:
    """Read all of a store in both modes, each with caches of its own."""
    found: list[list[Any]] = []
    for compiled in (False, True):
        with running(compiled):
            found.append(everything(_placed(files, folder), **options))
        if folder is not None:
            shutil.rmtree(folder)
    assert not first_difference(*found), first_difference(*found)
    counts[what] += len(found[0])
    counts[f"errors in {what}"] += sum(map(_is_error, found[0]))


def _placed(files: dict[str, bytes], folder: Path | None) -> FileSystem:
    if folder is not None:
        return laid_out(files, folder)
    memory = MemoryFileSystem()
    for name, data in files.items():
        parent, _, _ = name.rpartition("/")
        if parent and parent not in memory._folders:
            memory.mkdir(parent)
        file = memory.open(name, "create")
        file.pwritev([data], 0)
        file.close()
    return memory


def _is_error(found: Any) -> bool:
    return isinstance(found, str) and "Error: " in found[:60]


def _sum(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def test_histories_in_memory(spy: Spy) -> None:
    """The same for the bytes and the errors; mappings are those of Python."""
    counts: Counter[str] = Counter()

    @examples(40)
    @given(history=steps, seed=st.integers(0, 2**16))
    def run(history: list[Step], seed: int) -> None:
        compare(history, seed, None, counts)

    run()
    print(f"\nin memory: {_sum(counts)}; answered by the compiled module: {_shown(spy)}")
    assert counts["reads"] > 50 * counts["histories"]


def test_histories_on_disk(spy: Spy) -> None:
    counts: Counter[str] = Counter()

    @examples(40)
    @given(history=steps, seed=st.integers(0, 2**16))
    def run(history: list[Step], seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            compare(history, seed, Path(folder, "store"), counts)

    run()
    print(f"\non disk: {_sum(counts)}; answered by the compiled module: {_shown(spy)}")
    assert counts["reads"] > 50 * counts["histories"]


def _shown(spy: Spy) -> str:
    return ", ".join(
        f"{name} {spy.answers[name]:,} of {calls:,}" for name, calls in sorted(spy.calls.items())
    )


WHOLE: list[Step] = [
    *(("store", number, number * 5, number) for number in range(40)),
    *(("batch", 69, size, size) for size in (0, 1, 7, 64, 69)),
    *(("equal", number, number, number) for number in range(9)),
    *(("mixed", 11, number, number) for number in range(9)),
    *(("splats", number, 250, number) for number in range(5)),
    *(("patch", number, 1 + number, number) for number in range(6)),
    *(("checkpoint", number, number, 8) for number in range(3)),
    *(("seal", number, 0, 0) for number in range(3)),
    ("read", 3, 0, 0),
    ("compact", 1, 0, 0),
    *(("batch", 69, size, size) for size in (3, 64)),
    ("read", 7, 0, 0),
]
"""A history that does everything that the compiled module is for."""


def told_only() -> set[str]:
    """Functions that return nothing: what the module is told, as its stub says."""
    stub = ast.parse(Path(native.__file__).with_name("_native.pyi").read_text("utf-8"))
    functions = [item for item in stub.body if isinstance(item, ast.FunctionDef)]
    return {item.name for item in functions if ast.unparse(item.returns or item) == "None"}


def functions(module: Any) -> Iterator[str]:
    """What a compiled module is asked for or told."""
    for name, found in vars(module).items():
        if callable(found) and not isinstance(found, type) and not name.startswith("_"):
            yield name


def test_every_function_of_the_module_is_asked_and_answers(spy: Spy, tmp_path: Path) -> None:
    """Otherwise the comparison would hold as well where it says "not mine" to everything."""
    asked = sorted(set(functions(spy.module)) - OF_THE_CHECK - told_only())
    counts: Counter[str] = Counter()
    compare(WHOLE, 7, tmp_path / "store", counts)
    print(f"\n{_sum(counts)}; answered by the compiled module: {_shown(spy)}")
    silent = [name for name in asked if not spy.answers.get(name)]
    assert not silent, f"never asked, or never answered: {silent}; {_shown(spy)}"
    if not asked:
        pytest.skip("the module has no function yet")


@pytest.mark.parametrize("half", ["stored", "read"])
def test_a_module_that_differs_is_found(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stores other values, and one that reads others."""
    store, query = mldb.MLDatabase.store_tensor, mldb.MLDatabase.query_tensor

    def other_store(self: mldb.MLDatabase, name: str, data: Any, *given: Any, **named: Any) -> Any:
        changed = data + 1 if half == "stored" and native.twin is not None else data
        return store(self, name, changed, *given, **named)

    def other_query(self: mldb.MLDatabase, name: str, **named: Any) -> Any:
        found = query(self, name, **named)
        is_read = self.options.mode == "r" and native.twin is not None
        return found + 1 if half == "read" and is_read else found

    monkeypatch.setattr(mldb.MLDatabase, "store_tensor", other_store)
    monkeypatch.setattr(mldb.MLDatabase, "query_tensor", other_query)
    with pytest.raises(AssertionError, match="differs, of" if half == "stored" else "of"):
        compare([("store", 0, 4, 0)], 1, tmp_path / "store", Counter())
