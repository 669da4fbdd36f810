"""Which versions of a package an adapter speaks to, told before the package is imported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from mldb.errors import UsageError


def require_package(package: str, least: tuple[int, int], below: int, adapter: str) -> str:
    """Return the installed version of *package*: at least *least*, of a major below *below*.

    Raises UsageError that names what is installed and what fits.
    """
    wanted = f">={least[0]}.{least[1]},<{below}"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UsageError(
            f"{adapter} needs {package} {wanted}, which is not installed: "
            "pip install 'mldb[huggingface]'"
        ) from None
    numbers = re.match(r"(\d+)\.(\d+)(?!\d)", found)
    if numbers is None or not least <= tuple(map(int, numbers.groups())) < (below, 0):
        raise UsageError(
            f"{adapter} speaks to {package} {wanted}, and {found} is installed. Nothing was read "
            "or stored. pip install 'mldb[huggingface]' brings one that fits; checkpoints in a "
            "store are read without it: db.load(None, as_of=...)"
        )
    return found
