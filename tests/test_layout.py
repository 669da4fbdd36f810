"""The shape of the tree: packages, imports, the one door to the disk, sizes, docstrings.

Each rule is a function from parsed modules to a list of problems, so that it can be shown to find
what it looks for; the tests then hold the whole tree to it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mldb", "log", "compaction", "gpu", "tools")  # the ones beside mldb/ are linked in it

# The pure half of mldb.state: it takes states apart and puts them together, and stores nothing.
STATE_TREES = (
    *("leaves", "load", "load_modules", "optimizer_names", "optimizer_shapes", "optimizers"),
    *("parts", "prefixes", "report", "restore", "skeleton", "structs", "tree", "trial"),
)

# From the bottom up; a module may import from its own layer and those below. A module that is named
# stands where it is named, another where the first pattern fits; there is no layer for the rest.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        *("mldb.errors", "mldb.options", "mldb.names", "mldb.keys", "mldb.closing", "mldb.arrays"),
        *("mldb.integers", "mldb.printable", "mldb.html", "mldb.deferred"),
    ),
    ("mldb.log", "mldb.log.*"),
    ("mldb.noise", "mldb.noise.*", "mldb.sphere", "mldb.sphere.*"),
    ("mldb.compaction", "mldb.compaction.*", "mldb.gpu", "mldb.gpu.*"),
    ("mldb.tensors", "mldb.tensors.*"),
    ("mldb.state", *(f"mldb.state.{name}" for name in STATE_TREES)),
    ("mldb.history", "mldb.history.*"),
    (
        *("mldb.write", "mldb.write.*", "mldb.state.*"),
        *("mldb.lake", "mldb.lake.*", "mldb.query", "mldb.query.*"),
    ),
    ("mldb.database", "mldb.lake.m2m", "mldb.worker"),
    # What mldb.replay, mldb.repair, mldb.import_file and mldb.export_file are; the rest of
    # mldb.tools stands above mldb.
    (
        *("mldb.tools.replay", "mldb.tools.replay.*", "mldb.tools.repair", "mldb.tools.repair.*"),
        *("mldb.tools.formats", "mldb.tools.formats.*"),
    ),
    ("mldb",),
    ("mldb.adapters", "mldb.adapters.*", "mldb.tools", "mldb.tools.*"),
)

UNPLACED = -1

# What reaches the disk or the clock. Everything above log/fs/ goes through its FileSystem.
DOOR_MODULES = frozenset({"os", "io", "mmap", "fcntl", "pathlib", "shutil", "tempfile", "glob"})
DOOR_CALLS = frozenset(
    {"np.memmap", "np.fromfile", "np.load", "np.save", "np.savez", "time.time", "time.time_ns"}
)
# Parts of os that touch neither.
HARMLESS = frozenset(
    {
        "io.BytesIO",
        "os.PathLike",
        "os._exit",
        "os.close",
        "os.cpu_count",
        "os.environ",
        "os.fspath",
        "os.getpid",
        "os.register_at_fork",
        "os.strerror",
        "os.uname",
        "os.urandom",
    }
)
# The door itself, and the command line, which writes what its user asks for where they ask for it.
# The self-test of a device is a command, too: it maps a file in a folder of its own.
DOORS = ("mldb.log.fs.*", "mldb.tools", "mldb.tools.*", "mldb.gpu.selftest.memory")

PICKLES = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
PICKLE_CALLS = frozenset({"torch.load", "torch.save"})

# Names that several modules define: the entry points of programs, and of the command line.
DOUBLED = frozenset({"main", "command"})

FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed module of the package under its import name."""

    name: str
    tree: ast.Module


@cache
def modules() -> tuple[Module, ...]:
    """Parse every module of the package."""
    found = []
    for folder in FOLDERS:
        for path in _python_files(folder):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if folder != "mldb":
                parts = ("mldb", *parts)
            name = ".".join(parts).removesuffix(".__init__")
            found.append(Module(name, ast.parse(path.read_bytes(), str(path))))
    return tuple(found)


def _python_files(folder: str) -> list[Path]:
    """The files below *folder* in order; symlinked folders are not entered."""
    return [path for path in _files(ROOT / folder) if path.suffix == ".py"]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        built = path.suffix == ".so"  # the compiled module, in place
        if path.name == "__pycache__" or path.is_symlink() or built:
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _imports(module: Module, known: frozenset[str]) -> set[str]:
    """What *module* imports of the package, in functions and under ``TYPE_CHECKING`` as well."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in known else node.module for name in names)
    return {name for name in found if name.partition(".")[0] == "mldb"}


def _layer(name: str) -> int:
    for number, patterns in enumerate(LAYERS):
        if name in patterns:
            return number
    for number, patterns in enumerate(LAYERS):
        if any(fnmatch(name, pattern) for pattern in patterns):
            return number
    return UNPLACED


def unplaced(found: tuple[Module, ...]) -> list[str]:
    """Modules that stand in no layer."""
    return [module.name for module in found if _layer(module.name) == UNPLACED]


def upward_imports(found: tuple[Module, ...]) -> list[str]:
    """Imports that point to a higher layer, to a sibling that must not be known, or to nothing."""
    known = frozenset(module.name for module in found)
    problems = []
    for module in found:
        for target in sorted(_imports(module, known)):
            pair = {_second(module.name), _second(target)}
            if target not in known:
                problems.append(f"{module.name} imports {target}, which does not exist")
            elif _layer(target) > _layer(module.name):
                problems.append(f"{module.name} imports {target}, which is above it")
            elif pair == {"compaction", "gpu"}:
                problems.append(f"{module.name} imports {target}; neither may know the other")
    return problems


def _second(name: str) -> str:
    return name.partition(".")[2].partition(".")[0]


def import_cycle(found: tuple[Module, ...]) -> list[str]:
    """The modules of one cycle of imports, or nothing."""
    known = frozenset(module.name for module in found)
    graph = {module.name: _imports(module, known) - {module.name} for module in found}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def other_doors(module: Module) -> list[str]:
    """Uses of the disk or the clock that go around the FileSystem."""
    if any(fnmatch(module.name, door) for door in DOORS):
        return []
    own_open = any(isinstance(node, Function) and node.name == "open" for node in module.tree.body)
    problems = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            uses = [name for name in _imported_names(node) if _is_door(name)]
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            uses = [name] if name in DOOR_CALLS or _is_door_of_os(name) else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "open" and not own_open:
            uses = ["open"]
        else:
            continue
        problems += [f"{module.name}:{node.lineno} uses {name}" for name in uses]
    return problems


def _imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The dotted names that an import makes usable; plain ``import os`` is judged by its uses."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names if alias.name != "os" or alias.asname is not None]


def _is_door(name: str) -> bool:
    return name.partition(".")[0] in DOOR_MODULES and name not in HARMLESS


def _is_door_of_os(name: str) -> bool:
    # os.path.join holds the expression os.path, which is judged by itself.
    return name.startswith("os.") and name.count(".") == 1 and name not in HARMLESS


def pickling(module: Module) -> list[str]:
    """Everything that could load or write a pickle."""
    problems = []
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            problems.append(f"{module.name}:{node.value.lineno} passes allow_pickle")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in PICKLE_CALLS:
            problems.append(f"{module.name}:{node.lineno} uses {ast.unparse(node)}")
        problems += [
            f"{module.name} imports {name}" for name in names if name.partition(".")[0] in PICKLES
        ]
    return problems


def missing_docstrings(module: Module) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    problems = [] if ast.get_docstring(module.tree) else [f"{module.name} (the module)"]
    return problems + list(_undocumented(module.tree, module.name))


def _undocumented(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        if not _documented_elsewhere(node) and not ast.get_docstring(node):
            yield f"{name}:{node.lineno}"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node, name)


def _documented_elsewhere(node: Function | ast.ClassDef) -> bool:
    """Overloads belong to the implementation below them, setters to their property."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(re.fullmatch(r"(typing\.)?overload|\w+\.(setter|deleter)", d) for d in decorators)


def long_functions(module: Module) -> list[str]:
    """Functions that do not fit a screen."""
    problems = []
    for node in ast.walk(module.tree):
        if isinstance(node, Function) and node.end_lineno is not None:
            count = node.end_lineno - node.lineno + 1
            if count > FUNCTION_LINES_MAX:
                problems.append(f"{module.name}.{node.name}: {count} lines")
    return problems


def machine_paths(text: str) -> list[str]:
    """Absolute paths that exist on one machine only."""
    folders = "|".join(("home", "root", "work", "Users", "opt"))
    return re.findall(rf"(?<![\w.~])(?:/|[A-Z]:\\+)(?:{folders})[/\\]\S*", text)


def doubled_names(found: tuple[Module, ...]) -> list[str]:
    """Public names that two modules define at their top, each with all of these modules."""
    places: dict[str, set[str]] = {}
    for module in found:
        for name in _defined_names(module.tree):
            if not name.startswith("_"):
                places.setdefault(name, set()).add(module.name)
    return [
        f"{name}: {', '.join(sorted(modules))}"
        for name, modules in sorted(places.items())
        if len(modules) > 1
    ]


def _defined_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _text_files() -> Iterator[Path]:
    """Every file of the tree; caches, stores and installs are not part of it."""
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file())
    for folder in (".ci", *FOLDERS, "docs", "tests"):
        yield from _files(ROOT / folder)


def _setuptools() -> dict[str, dict[str, object]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["tool"]["setuptools"]
    assert isinstance(settings, dict)
    return settings


def expect_none(problems: list[str]) -> None:
    """Fail with one problem a line, which pytest would cut short."""
    assert not problems, "\n".join(problems)


def test_packages_are_the_folders_with_an_init() -> None:
    settings = _setuptools()
    folders = [
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in _python_files(folder)
        if path.name == "__init__.py"
    ]
    names = sorted(f if f.partition(".")[0] == "mldb" else f"mldb.{f}" for f in folders)
    assert sorted(settings["packages"]) == names
    places = {"mldb": "mldb"} | {f"mldb.{folder}": folder for folder in FOLDERS if folder != "mldb"}
    assert settings["package-dir"] == places


def test_files_that_are_not_python_are_package_data() -> None:
    listed = _setuptools()["package-data"]
    forgotten = []
    for folder in FOLDERS:
        for path in _files(ROOT / folder):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            patterns = listed.get(package if folder == "mldb" else f"mldb.{package}", [])
            assert isinstance(patterns, list)
            if path.suffix != ".py" and not any(fnmatch(path.name, p) for p in patterns):
                forgotten.append(str(path.relative_to(ROOT)))
    expect_none(forgotten)


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "mldb"])
def test_symlinks_are_in_place(folder: str) -> None:
    link = ROOT / "mldb" / folder
    assert link.is_symlink(), f"{link} is no symlink: git config core.symlinks true, check out anew"
    assert link.readlink() == Path("..") / folder


def test_imports_run_downward() -> None:
    expect_none(upward_imports(modules()))


def test_every_module_stands_in_a_layer() -> None:
    expect_none(unplaced(modules()))
    assert unplaced((_module("mldb.elsewhere", ""),)) == ["mldb.elsewhere"]


def test_imports_have_no_cycle() -> None:
    expect_none(import_cycle(modules()))


def test_one_door_to_the_disk() -> None:
    expect_none([problem for module in modules() for problem in other_doors(module)])


def test_nothing_is_pickled() -> None:
    expect_none([problem for module in modules() for problem in pickling(module)])


def test_public_things_have_docstrings() -> None:
    expect_none([problem for module in modules() for problem in missing_docstrings(module)])


def test_functions_fit_a_screen() -> None:
    expect_none([problem for module in modules() for problem in long_functions(module)])


def test_files_are_short() -> None:
    limits = dict.fromkeys(FOLDERS, FILE_LINES_MAX) | {"tests": TEST_FILE_LINES_MAX}
    long = []
    for folder, limit in limits.items():
        for path in _python_files(folder):
            count = path.read_bytes().count(b"\n")
            if count > limit:
                long.append(f"{path.relative_to(ROOT)}: {count} lines, the limit is {limit}")
    expect_none(long)


def test_a_public_name_has_one_meaning() -> None:
    found = [line.partition(":")[0] for line in doubled_names(modules())]
    assert sorted(found) == sorted(DOUBLED), "what is no longer doubled leaves the list as well"


def test_no_path_of_one_machine() -> None:
    found = {
        str(path.relative_to(ROOT)): machine_paths(path.read_text(errors="ignore"))
        for path in _text_files()
    }
    assert {name: paths for name, paths in found.items() if paths} == {}


def _module(name: str, source: str) -> Module:
    return Module(name, ast.parse(source))


def test_import_rules_find_what_they_look_for() -> None:
    found = (
        _module("mldb.errors", "def f():\n    from mldb.log import frame"),
        _module("mldb.log", ""),
        _module("mldb.log.frame", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
                "    from mldb.errors import MldbError\nimport mldb.nowhere"),
        _module("mldb.gpu", "import mldb.compaction"),
        _module("mldb.compaction", "import mldb.log"),
    )  # fmt: skip
    assert upward_imports(found) == [
        "mldb.errors imports mldb.log.frame, which is above it",
        "mldb.log.frame imports mldb.nowhere, which does not exist",
        "mldb.gpu imports mldb.compaction; neither may know the other",
    ]
    assert set(import_cycle(found)) == {"mldb.errors", "mldb.log.frame"}


@pytest.mark.parametrize(
    "source",
    [
        "import mmap",
        "import os\nos.remove(x)",
        "import os as system",
        "import os.path",
        "from os import remove",
        "from pathlib import Path",
        "open(x)",
        "import numpy as np\nnp.memmap(x)",
        "import time\ntime.time_ns()",
    ],
)
def test_door_rule_finds_what_it_looks_for(source: str) -> None:
    assert other_doors(_module("mldb.tensors.codec", source))
    assert not other_doors(_module("mldb.log.fs.posix", source))


def test_door_rule_lets_the_harmless_pass() -> None:
    source = "import os\nfrom os import PathLike\nos.getpid()\nfs.open(x)\ntime.monotonic()"
    assert not other_doors(_module("mldb.tensors.codec", source))


def test_remaining_rules_find_what_they_look_for() -> None:
    loads = _module("mldb.x", "from pickle import loads\ntorch.load(f)\nf(allow_pickle=True)")
    assert len(pickling(loads)) == 3
    bare = _module("mldb.x", "class A:\n    def b(self): ...\n    def _c(self): ...")
    assert missing_docstrings(bare) == ["mldb.x (the module)", "mldb.x.A:1", "mldb.x.A.b:2"]
    screen = _module("mldb.x", "def f():\n" + "    a = 1\n" * FUNCTION_LINES_MAX)
    assert long_functions(screen) == [f"mldb.x.f: {FUNCTION_LINES_MAX + 1} lines"]
    twice = (
        _module("mldb.x", "class A: ...\nb = 1"),
        _module("mldb.y", "A: int = 1\ndef b(): ..."),
    )
    assert doubled_names(twice) == ["A: mldb.x, mldb.y", "b: mldb.x, mldb.y"]
    private = (_module("mldb.x", "_a = 1\nb.c = 1"), _module("mldb.y", "_a = 1\ndef f(b): ..."))
    assert doubled_names(private) == []
    assert machine_paths("see /" + "home/me/store") == ["/" + "home/me/store"]
    assert machine_paths("tests/root/x, ~/work/x, https://example.org/home/x") == []
