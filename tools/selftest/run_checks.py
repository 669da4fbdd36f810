"""Run the checks, each in a folder of its own, and name what is not installed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Final

from mldb.tools.selftest.checks import Check
from mldb.tools.selftest.outcomes import BrokenPromise, CheckOutcome, NotHere

OPTIONAL: Final = {
    "torch": ("checkpoints of modules, loaders over lakes", "pip install 'mldb[torch]'"),
    "vulkan": ("samples made on a GPU", "pip install 'mldb[vulkan]'"),
    "numba": ("fast chains on the CPU", "pip install 'mldb[lake]'"),
    "faiss": ("neighbours in large lakes", "pip install 'mldb[lake]'"),
    "scipy": ("SciPy's sparse matrices", "pip install scipy"),
}
"""Packages that mldb does without: what needs them, and how they are installed."""


def run_checks(
    checks: Sequence[Check], folder: str, began: Callable[[str], None]
) -> Iterator[CheckOutcome]:
    """Yield how each check went; one that breaks down is a broken promise, and the next goes on.

    *began* is told the name of each. Ctrl-C is passed on.
    """
    for check in checks:
        name = check.__name__.replace("_", " ")
        began(name)
        place = os.path.join(folder, check.__name__)
        os.mkdir(place)
        start = time.perf_counter()
        try:
            text, state = check(place), "held"
        except NotHere as error:
            text, state = str(error), "skipped"
        except BrokenPromise as error:
            text, state = f"{_promise(check)} But {error}.", "broken"
        except Exception as error:  # noqa: BLE001 - whatever it is, the promise did not hold
            text, state = f"{_promise(check)} But {type(error).__name__}: {error}", "broken"
        yield CheckOutcome(name, state, text, time.perf_counter() - start)  # type: ignore[arg-type]


def _promise(check: Check) -> str:
    return (check.__doc__ or "").splitlines()[0]


def optional_parts() -> Iterator[CheckOutcome]:
    """Yield what there is of the packages that mldb does without; imports none of them."""
    for name, (what, how) in OPTIONAL.items():
        if find_spec(name) is None:
            yield CheckOutcome(name, "skipped", f"{what} need it: {how}", 0.0)
        else:
            yield CheckOutcome(name, "held", f"installed, for {what}", 0.0)
