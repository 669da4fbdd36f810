"""``--pure``: a benchmark of Python alone, without the compiled module.

What decides is in the environment, which children inherit, and is read when mldb is imported: so
this module imports nothing of it, and an entry calls :func:`settle` before it imports the rest.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

_OPTION = "--pure"


def settle(arguments: Sequence[str]) -> None:
    """Let Python run alone, in this process and its children, where the option is given."""
    if _OPTION in arguments:
        os.environ["MLDB_PURE"] = "1"


def add_pure(parser: argparse.ArgumentParser) -> None:
    """Let a parser know the option."""
    parser.add_argument(_OPTION, action="store_true", help="Python alone (MLDB_PURE=1)")


def check_pure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error where the option was given and :func:`settle` did not see it."""
    from mldb.log import native

    if options.pure and native.twin is not None:
        parser.error(f"{_OPTION} was not seen before mldb was imported: write it in full")
