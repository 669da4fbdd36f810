"""Which versions of a package an adapter speaks to, told before the package is imported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from mldb.errors import UsageError


def require_package(
    package: str, least: tuple[int, int], below: tuple[int, int], adapter: str, extra: str
) -> str:
    """Return the installed version of *package*: at least *least*, and below *below*.

    *extra* is that of mldb which brings one that fits. Raises UsageError that names what is
    installed and what fits.
    """
    wanted = f">={least[0]}.{least[1]},<{below[0]}.{below[1]}"
    install = f"pip install 'mldb[{extra}]'"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UsageError(
            f"{adapter} needs the package {package} {wanted}, which is not installed: {install}"
        ) from None
    numbers = re.match(r"(\d+)\.(\d+)(?!\d)", found)
    if numbers is None or not least <= tuple(map(int, numbers.groups())) < below:
        raise UsageError(
            f"{adapter} speaks to {package} {wanted}, and {package} {found} is installed. Nothing "
            f"was read or stored. {install} brings one that fits; checkpoints in a store are read "
            "without it: db.load(None, as_of=name)"
        )
    return found
