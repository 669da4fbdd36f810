"""mldb export and mldb import: whole files or none, one commit or none."""

from __future__ import annotations

import os
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mldb
from mldb.errors import MldbError, StorageFullError
from mldb.tools.cli.main import INTERRUPTED, PROBLEM, USAGE
from mldb.tools.formats.export_file import export_file
from mldb.tools.formats.import_file import SPILL_BYTES, import_file

Run = Callable[..., Any]


def void(_: object) -> None:
    """Forget a value."""


def _wide(path: Path, tensors: int, rows: int) -> str:
    """A store of tensors of *rows* KiB."""
    with mldb.open(path, durability="os") as db, db.transaction(epoch=1) as txn:
        for number in range(tensors):
            txn.store_tensor(f"t{number}", np.full((rows, 256), number, np.float32))
    return str(path)


def test_a_moment_goes_out_and_comes_back(ran: Run, store: str, tmp_path: Path) -> None:
    file, again = tmp_path / "out.safetensors", tmp_path / "again"
    found = ran(
        "export", store, file, "--as-of", "2", "--prefix", "conv1_", "--strip-prefix", "conv1_"
    )
    assert found.status == 0
    assert found.out.startswith("2 tensors, 160 B, of epoch 2 (lsn:")
    assert ran("import", again, file, "--new", "--epoch", "7", "--prefix", "c/").status == 0
    with mldb.open(again, mode="r") as db:
        assert db.epoch == 7
        assert sorted(db) == ["c/biases", "c/weights"]
        assert db["c/weights"][0, 0] == 2
        assert db.tensor("c/weights").metadata["type"] == "weights"


def test_reports_are_json(ran: Run, store: str, tmp_path: Path) -> None:
    file = tmp_path / "out.npz"
    found = ran("export", store, file, "--json").json
    assert (found["tensors"], found["format"], found["epoch"]) == (2, "npz", 4)
    assert found["metadata_lost"] == ["conv1_biases", "conv1_weights"]
    found = ran("import", store, file, "--prefix", "copy/", "--json").json
    assert (found["tensors"], found["epoch"], found["escaped"]) == (2, 4, {})


def test_one_tensor_goes_into_npy(ran: Run, store: str, tmp_path: Path) -> None:
    file = tmp_path / "w.npy"
    assert ran("export", store, file).status == USAGE
    assert not file.exists()
    assert ran("export", store, file, "--name", "conv1_weights", "--as-of", "3").status == 0
    assert np.load(file)[0, 0] == 3
    assert ran("export", store, tmp_path / "w.bin", "--name", "conv1_weights").status == USAGE
    both = ran("export", store, tmp_path / "x.npz", "--name", "conv1_weights", "--prefix", "c")
    assert both.status == USAGE


def test_a_file_that_exists_is_left_as_it_is(ran: Run, store: str, tmp_path: Path) -> None:
    file = tmp_path / "out.safetensors"
    file.write_bytes(b"precious")
    found = ran("export", store, file)
    assert found.status == USAGE
    assert "--force" in found.err
    assert file.read_bytes() == b"precious"
    assert ran("export", store, file, "--force").status == 0
    assert len(file.read_bytes()) > 100
    assert os.listdir(tmp_path / "run") != []
    assert sorted(os.listdir(tmp_path)) == ["out.safetensors", "run"]
    assert ran("export", store, tmp_path / "run", "--format", "npz", "--force").status == USAGE
    assert ran("export", store, tmp_path / "no" / "x.npz").status == PROBLEM


def test_who_comes_second_does_not_replace_the_first(store: str, tmp_path: Path) -> None:
    """The name was free when the export began, and was taken before it was done."""
    file = tmp_path / "out.npz"
    with mldb.open(store, mode="r") as db, db.at() as snapshot, pytest.raises(MldbError) as found:
        export_file(snapshot, str(file), progress=lambda _d, _t: void(file.write_bytes(b"first")))
    assert "exists" in str(found.value)
    assert file.read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == ["out.npz", "run"]


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "npy"])
def test_ctrl_c_leaves_nothing_behind(
    ran: Run, store: str, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mldb.tools.formats.export_file._Counter.__call__", interrupted)
    found = ran("export", store, tmp_path / f"out.{suffix}", "--name", "conv1_weights")
    assert found.status == INTERRUPTED
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, suffix: str) -> None:
    path = _wide(tmp_path / "run", 4, 1024)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mldb.open(path, mode="r") as db, db.at() as snapshot:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, limits[1]))
        try:
            with pytest.raises(StorageFullError, match="nothing of it is left"):
                export_file(snapshot, str(tmp_path / f"out.{suffix}"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["run"]


def test_an_import_that_fails_stores_nothing(ran: Run, store: str, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, good=np.ones(3), bad=np.array([None]))
    before = ran("stats", store, "--json").json["lsn"]
    assert ran("import", store, file).status == USAGE
    assert ran("import", tmp_path / "none", file, "--new").status == USAGE
    assert not (tmp_path / "none").exists()
    assert ran("import", store, tmp_path / "absent.npz").status == USAGE
    assert ran("stats", store, "--json").json["lsn"] == before


def test_ctrl_c_in_an_import_stores_nothing(store: str, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, a=np.ones(3), b=np.ones(500_000))

    def interrupted(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with mldb.open(store, spill_bytes=SPILL_BYTES) as db:
        before = db.lsn
        with pytest.raises(KeyboardInterrupt):
            import_file(db, str(file), progress=interrupted)
        assert db.lsn == before
        assert "a" not in db
    assert os.listdir(os.path.join(store, "pending")) == []


def test_a_store_is_made_only_where_that_is_asked_for(ran: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes").write_text("mine")
    assert "--new makes one" in ran("import", tmp_path / "new", tmp_path / "x.npz").err
    for flags in ([], ["--new"]):
        assert ran("import", other, tmp_path / "x.npz", *flags).status == USAGE
    assert os.listdir(other) == ["notes"]
    assert ran("import", tmp_path / "new", tmp_path / "x.npz", "--new").status == 0


def test_a_file_larger_than_the_memory_that_is_taken(tmp_path: Path) -> None:
    """Both ways, 64 MiB in tensors of 2 MiB: only a few of them are ever in memory."""
    path, file = _wide(tmp_path / "run", 32, 2048), str(tmp_path / "x.safetensors")
    tracemalloc.start()
    try:
        with mldb.open(path, mode="r") as db, db.at() as snapshot:
            export_file(snapshot, file)
        with mldb.open(tmp_path / "new", durability="os", spill_bytes=SPILL_BYTES) as db:
            import_file(db, file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert [int(db[f"t{number}"][7, 7]) for number in range(32)] == list(range(32))


def test_sparse_tensors_are_refused_by_name_or_left_out(ran: Run, tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with mldb.open(tmp_path / "run", durability="os") as db:
        db["s"] = sparse.csr_array(np.eye(4))
        db["d"] = np.eye(4)
    found = ran("export", tmp_path / "run", tmp_path / "x.npz")
    assert found.status == USAGE
    assert "'s' is sparse" in found.err
    found = ran("export", tmp_path / "run", tmp_path / "x.npz", "--skip-sparse", "--json").json
    assert (found["tensors"], found["skipped"]) == (1, ["s"])


def test_names_that_mldb_does_not_allow_are_refused_or_escaped(ran: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    arrays: dict[str, Any] = {"a/../b": np.ones(3), "bell\x07": np.ones(2), "fine": np.ones(1)}
    np.savez(file, **arrays)
    found = ran("import", tmp_path / "run", file, "--new")
    assert found.status == USAGE
    assert "--escape" in found.err
    assert "\x07" not in found.err
    found = ran("import", tmp_path / "run", file, "--new", "--escape")
    assert found.status == 0
    assert "\x07" not in found.out
    with mldb.open(tmp_path / "run", mode="r") as db:
        assert sorted(db) == ["a/%2E%2E/b", "bell%07", "fine"]
    long = tmp_path / "long.npz"
    arrays = {"x" * 300: np.ones(1)}
    np.savez(long, **arrays)
    assert ran("import", tmp_path / "run", long, "--escape").status == USAGE


def test_names_that_become_the_same_are_refused(ran: Run, tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db["m/a"], db["a"] = np.ones(3), np.ones(3)
    found = ran("export", tmp_path / "run", tmp_path / "x.npz", "--strip-prefix", "m/")
    assert (found.status, os.listdir(tmp_path)) == (USAGE, ["run"])
    assert "would both be 'a'" in found.err


@pytest.mark.parametrize("name", ["export", "import"])
def test_help_shows_an_example(name: str) -> None:
    from mldb.tools.cli.main import root_command

    done = CliRunner().invoke(root_command(), [name, "--help"])
    assert done.exit_code == 0
    assert f"mldb {name} run" in done.output


def test_a_file_is_not_written_into_the_store(ran: Run, store: str) -> None:
    (segment,) = Path(store, "segments").iterdir()
    before = segment.read_bytes()
    found = ran("export", store, segment, "--format", "npz", "--force")
    assert found.status == USAGE
    assert "lies in the store" in found.err
    assert segment.read_bytes() == before


def test_the_name_that_safetensors_keeps_for_itself_is_refused(ran: Run, tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db["__metadata__"] = np.ones(3)
    assert ran("export", tmp_path / "run", tmp_path / "x.safetensors").status == USAGE
    assert os.listdir(tmp_path) == ["run"]
    assert ran("export", tmp_path / "run", tmp_path / "x.npz").status == 0


def test_a_name_that_is_no_utf8_is_told_all_the_same(ran: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    header = b'{"a\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"7")
    assert ran("import", tmp_path / "run", file, "--new").status == USAGE
    found = ran("import", tmp_path / "run", file, "--new", "--escape", "--json")
    assert found.json["escaped"] == {"a\\ud800": "a%ED%A0%80"}
