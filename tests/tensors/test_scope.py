"""One snapshot: what is said of a name that is not there, and what that costs."""

from __future__ import annotations

import copy
import difflib
import os
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

import mldb
from mldb.errors import CorruptError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.view import View


def grown(names: Sequence[str], entries: int = 1000) -> mldb.MLDatabase:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os", segment_entries=entries)
    for low in range(0, len(names), 100):
        with db.transaction() as txn:
            for name in names[low : low + 100]:
                txn[name] = 1
    return db


def missing(db: Any, name: str) -> mldb.TensorNotFoundError:
    with pytest.raises(mldb.TensorNotFoundError) as caught:
        db.query_tensor(name)
    return caught.value


class Compared:
    """Counts the names that a missing one is compared with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        match = difflib.get_close_matches

        def noted(word: str, names: list[str], *arguments: Any) -> list[str]:
            self.counts.append(len(names))
            return match(word, names, *arguments)

        patch.setattr(difflib, "get_close_matches", noted)


def test_who_does_not_read_the_message_does_not_pay_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with grown([f"n{number:04d}" for number in range(500)]) as db:
        compared = Compared(monkeypatch)
        assert db.get("n00x4") is None
        assert "n00x4" not in db
        assert db.pop("n00x4", 5) == 5
        with pytest.raises(KeyError):
            db.tensor("n00x4")
        with db.transaction() as txn:
            assert txn.get("n00x4") is None
        assert compared.counts == []
        error = missing(db, "n00x4")
        assert compared.counts == []
        assert "Did you mean 'n0" in str(error)
        assert str(error) == str(error)  # noqa: PLR0124 - the second time it is known
        assert len(compared.counts) == 1


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("layer3210/weigth", "layer3210/weight"),  # far behind the first names
        ("xayer0001/weight", "layer0001/weight"),  # that would sort elsewhere
        ("layer4999/weight/", "layer4999/weight"),
    ],
)
def test_a_similar_name_is_found_in_a_bounded_sample_of_many(
    monkeypatch: pytest.MonkeyPatch, wrong: str, meant: str
) -> None:
    with grown([f"layer{number:04d}/weight" for number in range(5000)], 600) as db:
        db["other"] = 1
        compared = Compared(monkeypatch)
        assert f"Did you mean {meant!r}?" in str(missing(db, wrong))
        assert compared.counts[0] <= 1000 + 16 * 2 * 64


def test_only_a_name_of_this_snapshot_is_proposed() -> None:
    with grown(["encoder/weight"]) as db:
        before = db.lsn
        del db["encoder/weight"]
        assert "Did you mean" not in str(missing(db, "encoder/wieght"))
        with db.at(before) as fixed:
            error = missing(fixed, "encoder/wieght")
        assert "Did you mean 'encoder/weight'?" in str(error), "also after it was closed"


def test_copies_and_pickles_have_the_whole_message() -> None:
    with grown(["encoder/weight"]) as db:
        for travelled in (
            copy.copy(missing(db, "encoder/wieght")),
            pickle.loads(pickle.dumps(missing(db, "encoder/wieght"))),  # noqa: S301
        ):
            assert type(travelled) is mldb.TensorNotFoundError
            assert "Did you mean 'encoder/weight'?" in str(travelled)
        with pytest.raises(KeyError, match="Did you mean 'encoder/weight'"):
            db["encoder/wieght"]


def test_damage_met_on_the_way_does_not_hide_what_was_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(*arguments: Any) -> Any:
        raise CorruptError("damaged")

    with grown(["encoder/weight"]) as db:
        error = missing(db, "encoder/wieght")
        monkeypatch.setattr(View, "near", damaged)
        assert str(error) == "no tensor is named 'encoder/wieght' at commit 2 (epoch 0)."


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_reads_the_message_and_nothing_of_its_parent() -> None:
    with grown(["encoder/weight"]) as db:
        error = missing(db, "encoder/wieght")
        child = os.fork()
        if not child:
            os._exit("Did you mean" in str(error))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert "Did you mean" in str(error)
