"""What an import costs: heavy packages are loaded by what needs them, never by ``import mldb``.

Every check runs in a process of its own, where nothing has been imported before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

HEAVY = ("torch", "scipy", "sklearn", "duckdb", "sqlglot", "vulkan", "numba", "pandas")

_LOADED = """
import json, sys
{code}
names = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted(names)))
"""

# None in sys.modules makes an import of that name fail.
_WITHOUT = """
import importlib, json, pkgutil, sys
sys.modules.update(dict.fromkeys({heavy}))
import mldb
names = [module.name for module in pkgutil.walk_packages(mldb.__path__, "mldb.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""


def _run(code: str) -> list[str]:
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


def test_every_module_imports_without_the_heavy_packages() -> None:
    names = _run(_WITHOUT.format(heavy=repr(HEAVY)))
    assert {"mldb.errors", "mldb.log.os_fs", "mldb.tools.dev"} <= set(names)


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
