"""The shell room: one module a subcommand: parse, fill a settings object, call one function, print. No logic here.

Nothing is imported before it is needed: `fabric --help` reads a table, and a command's module only when it is called.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Runs the `fabric` command of this process and exits with its code."""
    _open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among the imports ends without a traceback
    from fabric.cli.app import run

    sys.exit(run(sys.argv[1:]))


def _open_standard_streams() -> None:
    """Puts /dev/null where a standard stream is closed (`>&-`), or the next file opened would take its place: reading
    ends at once, messages vanish, and writing a result fails as it should."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    from fabric import system

    system.set_up_streams()
