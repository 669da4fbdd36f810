"""Set up the checkout and run what a developer runs; standard library only.

``python3 tools/dev.py setup|demo|test|test-pure|test-large|lint|docs [arguments]``, and likewise
``bench|bench-lake|bench-growth|bench-compaction|bench-tools|bench-adapters``.

Arguments are those of the last step.

The first call makes ``.venv`` in the checkout and installs mldb (editable), torch and the
development tools into it with pip. A stamp tells later calls that there is nothing to do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / ".stamp"
# Stands while an installation runs: a folder in which it is found was left half made.
UNFINISHED = VENV / ".unfinished"

OLDEST_PYTHON = (3, 11)
# Debian packages that the tests or the demo need; installed with apt, and only by root.
# The Vulkan loader, lavapipe (Vulkan on the CPU), the shader tools and the validation layer; a
# browser, and a font for it, in which the page of `mldb report` is looked at.
SYSTEM_PACKAGES: tuple[str, ...] = (
    *("libvulkan1", "mesa-vulkan-drivers", "vulkan-validationlayers"),
    *("glslc", "spirv-tools"),
    *("chromium", "fonts-dejavu-core"),
    # The header of xxHash, for the compiled module.
    "libxxhash-dev",
)

# Sources of the compiled module.
BUILT_OF = (".py", ".pyx", ".pxi", ".pyi", ".h", ".c")

TYPES = ("-m", "mypy")
# Two processes: the tests wait for disks, children and time as often as they compute. Each has half
# of the tests in their order; who is done first takes half of what the other has left.
TESTS = ("-m", "pytest", "-n", "2", "--dist", "worksteal")
LINT = (
    ("-m", "ruff", "check", "--output-format=concise", "."),
    ("-m", "ruff", "format", "--check", "--output-format=concise", "."),
    TYPES,
)
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "setup": (),
    "demo": (("-m", "mldb.tools.demo"),),
    "test": (*LINT, TESTS),
    # The same tests without the compiled module: children inherit what says so.
    "test-pure": (TESTS,),
    # The tests of hypothesis as well: only here they take all of their examples.
    "test-large": (("-m", "pytest", "-m", "large or hypothesis"),),
    "bench": (("-m", "tests.bench"),),
    "bench-lake": (("-m", "tests.bench_lake"),),
    "bench-growth": (("-m", "tests.bench_growth"),),
    "bench-compaction": (("-m", "tests.bench_compaction"),),
    "bench-tools": (("-m", "tests.bench_tools"),),
    "bench-adapters": (("-m", "tests.bench_adapters"),),
    "lint": LINT,
    # Offline, with warnings as errors; into site/.
    "docs": (("-m", "zensical", "build", "--clean", "--strict"),),
}
# What a command adds to the environment of its steps.
_SETTINGS = {"test-pure": {"MLDB_PURE": "1"}}
# Whether the compiled module runs, or why it does not: said before the tests of either kind.
_NATIVE = "from mldb.log import native; print('native is', native.status)"
_HINTS = {
    "ruff check": "`.venv/bin/python -m ruff check --fix .` mends most of these",
    "ruff format": "`.venv/bin/python -m ruff format .` mends this",
}

_CAN_USE_TORCH = """
import sys
import torch
sys.exit(tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6))
"""


class SetupError(Exception):
    """A step of the set-up failed; the message is all a developer needs to see."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _step(title: str, command: list[str], hint: str) -> None:
    """Run one step quietly and print one line for it. Raises SetupError with its output."""
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise SetupError(
            f"{title}: failed with exit status {done.returncode}\n"
            f"  {' '.join(command)}\n{done.stdout.strip()}\n\n{hint}"
        )
    _say(f"  {title} ({time.monotonic() - start:.1f} s)")


def _succeeds(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def _fingerprint() -> str:
    """Hash all that decides what an installation looks like, its place included."""
    digest = hashlib.sha256()
    for part in (
        (ROOT / "pyproject.toml").read_bytes(),
        (ROOT / "setup.py").read_bytes(),
        *(path.read_bytes() for path in _sources(ROOT / "log/native")),
        Path(__file__).read_bytes(),
        repr(sys.version_info[:2]).encode(),
        str(ROOT).encode(),
    ):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _sources(folder: Path) -> list[Path]:
    """What the compiled module is built of, and not what was built."""
    return sorted(path for path in folder.iterdir() if path.suffix in BUILT_OF)


def _is_current(fingerprint: str) -> bool:
    try:
        return STAMP.read_text(encoding="ascii") == fingerprint and PYTHON.exists()
    except (OSError, UnicodeDecodeError):
        return False


def _pip(*arguments: str) -> list[str]:
    options = ("--quiet", "--disable-pip-version-check")
    return [str(PYTHON), "-m", "pip", "install", *options, *arguments]


def _install_system_packages() -> None:
    """Install what is missing where that is possible; without it some tests are skipped."""
    missing = [name for name in SYSTEM_PACKAGES if not _succeeds(["dpkg", "-s", name])]
    if not missing:
        return
    names = " ".join(missing)
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        _say(f"  not installed, so that some tests are skipped: apt-get install {names}")
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    try:
        _step("system packages", install, "")
    except SetupError:  # the list of packages is missing or old
        _step("list of system packages", ["apt-get", "update"], "Check the network.")
        _step("system packages", install, "Check the network, or install them by hand.")


def _make_venv() -> None:
    """Make ``.venv``, or keep one that is of this Python and was not left half made."""
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if UNFINISHED.exists() or not _succeeds([str(PYTHON), "-c", version]):
        if VENV.is_symlink():
            VENV.unlink()
        elif VENV.exists():
            _say("  .venv is half made or of another Python: making it anew")
            shutil.rmtree(VENV)
        VENV.mkdir()
        UNFINISHED.touch()
        # When this runs inside a virtual environment, that one may be the folder just removed.
        base = getattr(sys, "_base_executable", None) or sys.executable
        hint = "On Debian and Ubuntu venv is a package of its own: apt install python3-venv"
        _step("virtual environment", [base, "-m", "venv", str(VENV)], hint)
    elif not _succeeds([str(PYTHON), "-m", "pip", "--version"]):
        # Other tools make environments without pip.
        _step("pip", [str(PYTHON), "-m", "ensurepip"], "Delete .venv and try again.")


def _install_torch() -> None:
    """Install torch before anything else, so that nothing else decides which build it is."""
    if _succeeds([str(PYTHON), "-c", _CAN_USE_TORCH]):
        return
    hint = (
        "torch could not be installed. Check the network, or install the build you want into .venv "
        "by hand (any torch >= 2.6 is used as it is), and try again."
    )
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        _step("torch for CUDA", _pip("torch>=2.6"), hint)
        return
    # "+cpu" builds exist only where pip has been pointed at an index that has them (PIP_INDEX_URL,
    # PIP_EXTRA_INDEX_URL or pip.conf). Elsewhere the plain build is the only one; on Linux it
    # brings gigabytes of CUDA libraries, which is why the other one is tried first.
    try:
        _step("torch for the CPU", _pip("torch==2.13.0+cpu"), hint)
    except SetupError:
        _say("  pip finds no CPU build of torch: installing the plain one, which may be large")
        _step("torch", _pip("torch==2.13.0"), hint)


def _install() -> None:
    _install_torch()
    _step(
        "mldb and the development tools",
        _pip("--editable", ".[dev,lightning,huggingface,docs]"),
        "Check the network, or PIP_INDEX_URL if you use an index of your own, and try again. "
        "If it fails with the network in order, delete .venv first.",
    )


def setup() -> None:
    """Bring ``.venv`` up to date; does nothing when the stamp says that it is.

    Raises SetupError. An environment whose installation was interrupted is made anew by the next
    call; one in which pip failed in an orderly way is kept.
    """
    if not (ROOT / "pyproject.toml").is_file():
        raise SetupError(f"{ROOT} is no checkout of mldb: run tools/dev.py of the repository.")
    fingerprint = _fingerprint()
    if _is_current(fingerprint):
        return
    _say("setting up .venv")
    _install_system_packages()
    _make_venv()
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)
    try:
        _install()
    except SetupError:
        UNFINISHED.unlink()
        raise
    STAMP.write_text(fingerprint, encoding="ascii")
    UNFINISHED.unlink()


def _finish(step: tuple[str, ...], code: int) -> int:
    """Say so when a step failed; return its exit status."""
    if code:
        title = _title(step)
        hint = f": {_HINTS[title]}" if title in _HINTS else ""
        _say(f"{title} failed with exit status {code}{hint}")
    return code


def _title(step: tuple[str, ...]) -> str:
    return " ".join(step[1:3] if step[1] == "ruff" else step[1:])


def _environment(name: str) -> dict[str, str]:
    """Return the environment of a command's steps: byte code is kept, whatever the shell says.

    Without it every process compiles its tests anew, and each of hundreds of children all of mldb.
    """
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | _SETTINGS.get(name, {})


def _run(step: tuple[str, ...], extra: list[str], environment: dict[str, str]) -> int:
    command = [str(PYTHON), *step, *extra]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return _finish(step, code)


def run(name: str, arguments: list[str]) -> int:
    """Run the steps of one command to the end; return the first exit status that is not 0.

    The type checker takes a minute of one processor: it runs beside the tests, where they follow,
    and what it says comes behind what they say.
    """
    steps = COMMANDS[name]
    environment = _environment(name)
    codes = [0]
    if TESTS in steps:
        # On standard error, as the titles of the steps, which it stands above.
        said_by = [str(PYTHON), "-c", _NATIVE]
        subprocess.run(said_by, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
    with tempfile.TemporaryFile() as said:
        types: subprocess.Popen[bytes] | None = None
        for number, step in enumerate(steps, 1):
            if step == TYPES and number < len(steps):
                command = [str(PYTHON), *step]
                types = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
                continue
            if len(steps) > 1:
                _say(f"== {_title(step)}")
            extra = arguments if number == len(steps) else []
            codes.append(_run(step, extra, environment))
        if types is not None:
            _say(f"== {_title(TYPES)}")
            code = types.wait()
            said.seek(0)
            _say(said.read().decode(errors="replace").rstrip())
            codes.append(_finish(TYPES, code))
    return next((code for code in codes if code), 0)


def main(arguments: list[str]) -> int:
    """Set up, run the command named first, and return its exit status."""
    if sys.version_info < OLDEST_PYTHON:
        have = ".".join(str(part) for part in sys.version_info[:3])
        _say(f"mldb needs Python 3.11 or newer and this is {have}: try make PYTHON=python3.12 …")
        return 2
    if not arguments or arguments[0] not in COMMANDS:
        _say(f"usage: python3 tools/dev.py {'|'.join(COMMANDS)} [arguments for the last step]")
        return 2
    try:
        setup()
        return run(arguments[0], arguments[1:])
    except (SetupError, OSError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
