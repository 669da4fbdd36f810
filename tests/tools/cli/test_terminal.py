"""Commands in a terminal: a pseudo terminal of 80 and of 40 columns, in a process of its own.

One process runs all commands of a width; a line that no command prints stands between them.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import mldb

MARK = "-- next --"
CHILD = f"""
import json, sys
from mldb.tools.cli.main import main
for words in json.loads(sys.argv[1]):
    main(words)
    sys.stdout.flush()
    print({MARK!r}, flush=True)
"""
HOSTILE = "safe\u202etxt\u200b"
WIDE = "层/重み" * 12
STYLE = re.compile(r"\x1b\[([0-9;]*)m")
COLOUR = re.compile(r"(?:^|;)(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;|$)")


def in_terminal(commands: list[list[str]], columns: int, **environment: str) -> list[str]:
    """What each command prints on a terminal so wide, line ends as they were printed."""
    import json

    own, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    kept |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(commands)],
        stdin=other,
        stdout=other,
        stderr=subprocess.DEVNULL,
        env=kept,
    )
    os.close(other)
    found = bytearray()
    try:
        while data := os.read(own, 1 << 16):
            found += data
    except OSError:
        pass  # the other end is closed: Linux says EIO
    finally:
        os.close(own)
        assert child.wait(60) == 0
    *parts, last = found.decode().replace("\r\n", "\n").split(f"{MARK}\n")
    assert last == ""
    assert len(parts) == len(commands)
    return parts


def cells(line: str) -> int:
    """Cells of a terminal that a line without escape sequences takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in line)
    return len(line) + wide - sum(1 for char in line if unicodedata.combining(char))


@pytest.fixture
def hostile_store(store: str) -> str:
    """The small run with names that turn text around, are wide, or have no end."""
    with mldb.open(store, durability="os") as db:
        db.store_tensor(HOSTILE, np.arange(50.0), {"note": "\x1b[31mred\x1b[0m\r\nforged" * 9})
        db.store_tensor(WIDE, np.full(3, np.nan))
        db.store_tensor("x" * 250, np.array([1.0, np.inf]))
        db.create_relationship(HOSTILE, WIDE, "feeds\u202einto")
    return store


def commands_on(path: str) -> list[list[str]]:
    return [
        ["ls", path],
        ["show", path, "conv1_weights"],
        ["show", path, HOSTILE, "--values"],
        ["show", path, WIDE],
        ["show", path, "x" * 250],
        ["history", path, HOSTILE],
        ["diff", path, "1", "head", "--all"],
        ["query", path, "SELECT name, shape, mean, dtype FROM tensors"],
        ["query", path, "SELECT * FROM relationships"],
        ["graph", path],
        ["stats", path],
        ["verify", path],
        ["retention", path],
        ["tag", path],
        ["--help"],
        ["show", "--help"],
    ]


@pytest.mark.parametrize("columns", [80, 40])
def test_no_line_is_wider_than_the_terminal_and_names_steer_nothing(
    hostile_store: str, columns: int
) -> None:
    commands = commands_on(hostile_store)
    for words, text in zip(commands, in_terminal(commands, columns), strict=True):
        what = " ".join(word for word in words if word != hostile_store)
        assert text, f"{what} printed nothing"
        plain = STYLE.sub("", text)
        for line in plain.splitlines():
            if line.startswith("  mldb "):
                continue  # an example, which is copied: it stays on its line
            assert cells(line) <= columns, f"{what}: {line!r}"
        steering = [char for char in plain if char != "\n" and not char.isprintable()]
        assert not steering, f"{what}: {steering}"
        assert "\u202e" not in plain


def test_no_color_is_honoured(store: str) -> None:
    commands = [["ls", store], ["query", store, "SELECT name FROM tensors"], ["tag", store]]
    for text in in_terminal(commands, 80, NO_COLOR="1"):
        assert not [style for style in STYLE.findall(text) if COLOUR.search(style)]
    for text in in_terminal(commands, 80, TERM="dumb"):
        assert "\x1b" not in text


def test_nothing_is_styled_without_a_terminal(store: str) -> None:
    command = [sys.executable, "-m", "mldb.tools", "ls", store]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == "name\tdtype\tshape\tepoch\tbytes"


def test_a_name_that_the_encoding_lacks_is_an_escape(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("gewicht_ß_层", np.arange(100.0))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for words in (["ls"], ["show"]):
        tail = ["gewicht_ß_层"] if words == ["show"] else []
        command = [sys.executable, "-m", "mldb.tools", *words, str(tmp_path / "run"), *tail]
        done = subprocess.run(command, capture_output=True, env=environment, check=True)
        text = done.stdout.decode("ascii")
        assert "gewicht_\\xdf_\\u5c42" in text
    assert "########" in text, "bars of ASCII where there are no blocks"
