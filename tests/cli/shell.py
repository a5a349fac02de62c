"""Starts the real command as a user's shell would: own process, real pipes, real terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import REPOSITORY

FABRIC = [sys.executable, "-m", "fabric"]


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    out: bytes
    err: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The user's, without settings of fabric in it, but for the device: tests run on the processor."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_") and k != "XDG_CONFIG_HOME"}
    return {**kept, "FABRIC_DEVICE": "cpu", "PYTHONPATH": str(REPOSITORY), "HOME": "/nonexistent", **(extra or {})}


def fabric(
    *arguments: str | Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60,
) -> Ended:
    """Runs one command to its end."""
    done = subprocess.run(
        [*FABRIC, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment(env),
        cwd=cwd,
        timeout=timeout,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr.decode())


def shell(script: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 120) -> Ended:
    """Runs a bash script in which `fabric` is the command; pipefail is on."""
    text = f'set -o pipefail\nfabric() {{ "{sys.executable}" -m fabric "$@"; }}\n{script}'
    done = subprocess.run(
        ["bash", "-c", text], capture_output=True, env=environment(env), cwd=cwd, timeout=timeout, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr.decode())


def on_terminal(
    *arguments: str | Path,
    stream: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    columns: int = 160,
) -> tuple[int, str]:
    """Runs a command whose `stream` (stdin, stdout or stderr) is a terminal; what the terminal saw."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams: dict[str, int] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if stream == "stdin":
        streams["stderr"] = slave
    streams[stream] = slave
    process = subprocess.Popen(
        [*FABRIC, *map(str, arguments)],
        env=environment({"TERM": "xterm", **(env or {})}),
        cwd=cwd,
        **streams,  # type: ignore[arg-type]
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    return process.wait(60), seen.decode(errors="replace")


def one_sentence(ended: Ended, code: int, *words: str) -> None:
    """Asserts the exit code, and that stderr is a single line with those words and no traceback."""
    assert ended.code == code, ended
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("fabric"), lines[0]
    for word in words:
        assert word in lines[0], lines[0]
