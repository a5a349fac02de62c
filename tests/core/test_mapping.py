"""What becomes of bus errors: of a mapped file that was cut a sentence, of all others what was before."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut there")

SCRIPT = """
import faulthandler, mmap, os, signal, sys, threading
from fabric.mapping import mapped

def touch(map):  # of the second page, which is gone
    return map[5000]

def cut(name):
    open(name, "wb").write(bytes(10000))
    file = open(name, "rb")
    return file

def guarded(name):
    map = mapped(cut(name), name)
    os.truncate(name, 100)
    return map

def unguarded(name):
    with cut(name) as file:
        map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(name, 100)
    return map

"""


def run(body: str, folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body], cwd=folder, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


SENTENCE = "fabric: a became shorter while it was being read; put back the whole file and run the command again\n"


@pytest.mark.parametrize(
    "body",
    [
        "touch(guarded('a'))",
        "map = guarded('a'); t = threading.Thread(target=touch, args=(map,)); t.start(); t.join()",
        "faulthandler.enable(); touch(guarded('a'))",
        "others = [guarded(f'b{i}') for i in range(40)]; map = guarded('a'); del others; touch(map)",
        "[guarded(f'b{i}') for i in range(200)]; touch(guarded('a'))",
    ],
)
def test_a_cut_file_ends_in_its_sentence(body: str, tmp_path: Path) -> None:
    assert run(body, tmp_path) == (74, SENTENCE)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        "map = guarded('a'); touch(unguarded('b'))",
        "map = guarded('a'); os.kill(os.getpid(), signal.SIGBUS); threading.Event().wait(20)",
        "map = guarded('a'); del map; touch(unguarded('a'))",
    ],
)
def test_other_bus_errors_are_left_to_the_handler_before(body: str, traced: bool, tmp_path: Path) -> None:
    code, err = run(("faulthandler.enable()\n" if traced else "") + body, tmp_path)
    assert code == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in err) == traced
    assert "became shorter" not in err


def test_a_handler_of_python_still_hears_the_signal(tmp_path: Path) -> None:
    body = """
signal.signal(signal.SIGBUS, lambda *_: sys.exit(5))
map = guarded('a')
os.kill(os.getpid(), signal.SIGBUS)
threading.Event().wait(20)
"""
    assert run(body, tmp_path) == (5, "")


def test_a_name_of_any_length_is_called(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(9):
        folder = folder / ("d" * 200)
        folder.mkdir()
    code, err = run(f"touch(guarded({str(folder)!r} + '/a'))", tmp_path)
    assert code == 74 and err.count("\n") == 1 and "became shorter" in err
