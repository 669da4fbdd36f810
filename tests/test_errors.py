"""The tree of errors: what catches what, and what an error carries with it."""

from __future__ import annotations

import copy
import pickle

import pytest

import mldb
from mldb import errors

ALL = sorted(
    (item for item in vars(errors).values() if isinstance(item, type)),
    key=lambda item: item.__name__,
)
BUILTIN = {
    "LimitError": ValueError,
    "InvalidNameError": ValueError,
    "InvalidValueError": ValueError,
    "EpochOrderError": ValueError,
    "QueryError": ValueError,
    "InvalidTypeError": TypeError,
    "MissingError": KeyError,
    "TensorNotFoundError": KeyError,
    "VersionGoneError": KeyError,
}
STORAGE = {"StorageError", "CorruptError", "StorageFullError", "StorageIOError"}
GROUPS = (mldb.StorageError, mldb.UsageError, mldb.MissingError, mldb.RetryableError)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_public_and_in_exactly_one_group(kind: type[Exception]) -> None:
    assert issubclass(kind, mldb.MldbError)
    assert getattr(mldb, kind.__name__) is kind
    assert kind.__name__ in mldb.__all__
    if kind is not mldb.MldbError:
        assert sum(issubclass(kind, group) for group in GROUPS) == 1
    builtin = BUILTIN.get(kind.__name__)
    for candidate in (ValueError, TypeError, KeyError):
        assert issubclass(kind, candidate) == (candidate is builtin)
    assert not issubclass(kind, OSError)  # errno and __cause__ tell what the system said


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_only_retryable_errors_say_so(kind: type[mldb.MldbError]) -> None:
    assert kind.retryable == issubclass(kind, mldb.RetryableError)
    assert kind("message").retryable == kind.retryable


def _failed_sync() -> mldb.StorageIOError:
    error = mldb.StorageIOError("fdatasync failed", errno=5)
    error.failed_sync = True
    return error


INSTANCES = [
    mldb.CorruptError("damaged", file="segments/1.seg", offset=0, key="x"),
    mldb.CorruptError("damaged", file="MANIFEST-1"),
    mldb.CorruptError("damaged"),
    mldb.StorageFullError("full", errno=28),
    mldb.StorageIOError("failed", errno=5),
    mldb.VersionGoneError("pruned", below=3, above=None),
    mldb.ConflictError("changed", names=("a", "b")),
    mldb.TensorNotFoundError("no tensor is named 'x'"),
    mldb.StoreMovedError("moved", errno=116),
    *(kind("message") for kind in ALL),
    _failed_sync(),
]


@pytest.mark.parametrize("error", INSTANCES, ids=repr)
def test_an_error_travels_between_processes_with_all_it_carries(error: mldb.MldbError) -> None:
    """As from the worker of a DataLoader."""
    for travelled in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(travelled) is type(error)
        assert str(travelled) == str(error)
        assert vars(travelled) == vars(error)


def test_damage_names_its_place() -> None:
    assert str(INSTANCES[0]) == "damaged [file segments/1.seg, offset 0]"
    assert str(INSTANCES[1]) == "damaged [file MANIFEST-1]"
    assert str(INSTANCES[2]) == "damaged"


def test_a_missing_thing_prints_its_message_and_not_the_repr_of_it() -> None:
    assert str(mldb.TensorNotFoundError("no tensor is named 'x'")) == "no tensor is named 'x'"
    assert str(KeyError("no tensor is named 'x'")) != "no tensor is named 'x'"
    assert str(mldb.MissingError()) == ""


def test_what_was_perhaps_meant_is_looked_for_once_by_who_reads_the_message() -> None:
    asked: list[str] = []

    def suggest() -> str:
        asked.append("x")
        return " Did you mean 'y'?"

    def raised() -> mldb.TensorNotFoundError:
        return mldb.TensorNotFoundError("no tensor is named 'x'.", suggest=suggest)

    error = raised()
    with pytest.raises(KeyError):
        raise error
    assert asked == []
    for _ in range(2):
        assert str(error) == "no tensor is named 'x'. Did you mean 'y'?"
    assert error.args == ("no tensor is named 'x'. Did you mean 'y'?",)
    assert asked == ["x"]
    for travelled in (pickle.loads(pickle.dumps(raised())), copy.copy(raised())):  # noqa: S301
        assert asked.pop() == "x"
        assert str(travelled) == "no tensor is named 'x'. Did you mean 'y'?"
    assert len(asked) == 1
