"""What an import costs: heavy packages are loaded by what needs them, never by ``import mldb``.

Every check runs in a process of its own, where nothing has been imported before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

HEAVY = ("torch", "scipy", "sklearn", "duckdb", "sqlglot", "vulkan", "numba", "pandas")

_LOADED = """
import json, sys
{code}
names = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted(names)))
"""

# The PyTorch side of the lake: its classes derive from torch's.
TORCH_SIDE = (
    "mldb.lake.rows.torch_slab",
    *(f"mldb.lake.stream.{name}" for name in ("batches", "dataset", "loader", "streams")),
)

# The side of queries that works on sqlglot's trees: mldb.query.rewrite imports it when first asked.
SQL_SIDE = tuple(
    f"mldb.query.{name}"
    for name in (
        *("allowed", "functions", "grammar", "limits", "relations", "resolve", "scopes"),
        *("short_form", "words"),
    )
)

# What opening a store has no use for: the verbs bring it when they are first called.
VERBS_BRING = (
    *("mldb.state.checkpointing", "mldb.state.tree", "mldb.state.load", "mldb.state.planning"),
    *("mldb.history.checkpoints", "mldb.history.diff", "mldb.history.metrics"),
    *("mldb.history.relationships", "mldb.history.versions", "mldb.history.retention"),
    *("mldb.write.transaction", "mldb.write.staging", "mldb.write.tensor_writer"),
    *("mldb.write.references", "mldb.write.ops", "mldb.write.preemption", "mldb.tensors.handle"),
    *("mldb.compaction.worker", "mldb.compaction.gate", "mldb.compaction.status"),
    *("mldb.compaction.table", "mldb.compaction.deltas", "mldb.compaction.retention"),
    *("mldb.log.directory.merge", "mldb.log.pending", "mldb.log.batches", "mldb.log.tail"),
    *("mldb.html", "mldb.lake", "mldb.query.queries"),
    *("logging", "signal", "traceback", "sortedcontainers", "difflib", "html", "json"),
    *("resource", "numpy.typing"),
)
# And what a handle that only reads has none for.
WRITES_BRING = ("sequencer", "syncing", "saving", "sealing", "orphans", "directory.maker")

# Of these, what only some calls of a verb need.
RARE = (
    *("mldb.log.directory.merge", "mldb.log.pending", "mldb.log.tail", "mldb.write.tensor_writer"),
    *("mldb.lake", "mldb.query.queries"),
)

OWN_MODULES_MAX = 145

# Code is generated for a dataclass where dataclasses is asked for an __init__.
_OPENED = """
import dataclasses, json, sys, numpy
before, generated, real = set(sys.modules), [], dataclasses.dataclass
def counted(cls=None, /, **options):
    if options.get("init", True):
        generated.append(str(cls))
    return real(cls, **options)
dataclasses.dataclass = counted
import mldb
db = mldb.open({path!r}, mode={mode!r})
print(json.dumps([sorted(set(sys.modules) - before), generated]))
"""

# None in sys.modules makes an import of that name fail.
_WITHOUT = """
import importlib, json, pkgutil, sys
sys.modules.update(dict.fromkeys({heavy}))
import mldb
names = [module.name for module in pkgutil.walk_packages(mldb.__path__, "mldb.")]
names = [name for name in names if not name.endswith("__main__") and name not in {left_out}]
names = [name for name in names if not name.startswith("mldb.adapters.")]  # each has its framework
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""


def _run(code: str) -> list[Any]:
    """Run *code* in a new interpreter and return the list that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert isinstance(result, list)
    return result


def test_open_loads_no_heavy_package() -> None:
    loaded = _run(_LOADED.format(code="import mldb\nassert callable(mldb.open)"))
    assert "numpy" in loaded  # otherwise mldb.open was not really there
    assert not set(HEAVY) & set(loaded)


def test_import_alone_loads_not_even_numpy() -> None:
    loaded = _run(_LOADED.format(code="import mldb"))
    assert "mldb" in loaded
    assert "numpy" not in loaded


@pytest.mark.parametrize("mode", ["rw", "r"])
def test_opening_loads_what_it_needs(tmp_path: Path, mode: str) -> None:
    path = str(tmp_path / "store")
    _run(_OPENED.format(path=path, mode="rw"))
    loaded, generated = _run(_OPENED.format(path=path, mode=mode))
    assert {"mldb.log.log", "mldb.write.verbs", "mldb.tensors.scope"} <= set(loaded)
    unused = {*VERBS_BRING, *(f"mldb.log.{name}" for name in WRITES_BRING if mode == "r")}
    assert sorted(unused & set(loaded)) == []
    assert len([name for name in loaded if name.startswith("mldb")]) <= OWN_MODULES_MAX
    assert not generated


def test_the_verbs_bring_what_they_need(tmp_path: Path) -> None:
    code = f"""
import json, sys
import mldb
db = mldb.open({str(tmp_path / "store")!r})
with db.transaction() as txn:
    txn.store_tensor("a", [1.0])
db.checkpoint({{"a": [2]}}, epoch=1)
db.log({{"loss": 1.0}}), db.metrics("loss"), db.relationships(), db.history("a"), db.tensor("a")
db.checkpoints(), db.keepers(), db._repr_html_(), db.stats(), list(db), list(db.diff(0, 1))
db.ops, list(db.events()), db.save_on_signal(10, print)
db.close()
print(json.dumps(sorted(sys.modules)))
"""
    brought = {name for name in _run(code) if name.startswith("mldb.")}
    rest = {name for name in VERBS_BRING if name.startswith("mldb.")} - brought
    assert rest <= {"mldb.compaction.deltas", "mldb.compaction.worker", *RARE}


def test_every_module_imports_without_the_heavy_packages() -> None:
    left_out = (*TORCH_SIDE, *SQL_SIDE)
    names = _run(_WITHOUT.format(heavy=repr(HEAVY), left_out=repr(left_out)))
    assert {"mldb.query.rewrite", "mldb.query.parsed"} <= set(names)
    assert {"mldb.errors", "mldb.log.fs.posix", "mldb.tools.dev"} <= set(names)


def test_a_lake_works_without_torch_but_for_the_stream(tmp_path: Path) -> None:
    code = f"""
import json, sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
import numpy as np
import mldb
with mldb.open({str(tmp_path / "store")!r}) as db:
    lake = db.lake(dim=8)
    lake.add_splats(np.eye(8))
    moved = lake.augment(np.eye(8), mode="walk", k=3, device="numpy")
    assert moved.shape == lake.get()["mu"].shape == (8, 8)
    lake.augment(np.eye(8), strength=0.5, device="numpy")
    try:
        lake.export_to_dataloader(4)
    except mldb.UsageError as error:
        print(json.dumps([str(error)]))
"""
    (message,) = _run(code)
    assert "pip install mldb[torch]" in message


def test_every_public_name_is_there() -> None:
    code = "import json, mldb\nfor name in mldb.__all__: getattr(mldb, name)\n"
    names = _run(code + "print(json.dumps([name for name in mldb.__all__ if name in dir(mldb)]))")
    public = _run("import json, mldb; print(json.dumps(list(mldb.__all__)))")
    assert {"open", "MLDatabase", "MldbError"} <= set(public)
    assert names == public


def test_unknown_name_is_an_attribute_error() -> None:
    import mldb

    name = "no_such_name"
    with pytest.raises(AttributeError, match=name):
        getattr(mldb, name)
