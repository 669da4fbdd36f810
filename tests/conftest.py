"""Fixtures and settings that every test shares.

Everything random comes from ``seed`` or ``rng``. The seed depends on nothing but the name of the
test, so that a run repeats itself; MLDB_TEST_SEED sets another one, and a failing test prints the
one it used. Hypothesis repeats itself too; MLDB_HYPOTHESIS_PROFILE=explore looks for new examples.
"""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from mldb.log import native
from tests.support.parts import count_of, take_all

# A loaded machine must not change what passes: no deadline, and slow examples are no failure.
_EXAMPLES = 100
_COMMON = hypothesis.settings(
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("explore", _COMMON, max_examples=1000)

_SEED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Take all examples of hypothesis in a large run and a share in others."""
    profile = os.environ.get("MLDB_HYPOTHESIS_PROFILE", "repeat")
    large = "large" in config.option.markexpr.replace("not large", "")
    take_all(large or profile == "explore")
    hypothesis.settings.register_profile(
        "repeat", _COMMON, derandomize=True, max_examples=count_of(_EXAMPLES)
    )
    hypothesis.settings.load_profile(profile)


def pytest_report_header() -> str:
    """What runs: the compiled module, or Python alone and why."""
    return f"mldb: native is {native.status}"


def pytest_collection_finish() -> None:
    """Tests and packages stay until the end: no garbage collection looks through them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test; a failure prints it."""
    given = os.environ.get("MLDB_TEST_SEED")
    value = zlib.crc32(request.node.nodeid.encode()) if given is None else int(given)
    request.node.stash[_SEED] = value
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A generator that starts from ``seed``."""
    return np.random.default_rng(seed)


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a store can be made; nothing is there yet."""
    return tmp_path / "store"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch with one thread: small networks gain nothing from more, and lose much beside others."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _SEED in item.stash:
        report.sections.append(("seed", f"repeat with MLDB_TEST_SEED={item.stash[_SEED]}"))
    return report
