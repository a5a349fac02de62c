"""The shell room: one module a subcommand: parse, fill a settings object, call one function, print. No logic here.

Nothing is imported before it is needed: `fabric --help` reads a table, and a command's module only when it is called.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the `fabric` command of this process and exits with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among the imports ends without a traceback
    from fabric.cli.app import run

    sys.exit(run(sys.argv[1:]))
