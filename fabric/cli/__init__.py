"""The shell room: one module a subcommand: parse, fill a settings object, call one function, print. No logic here.

Nothing is imported before it is needed: `fabric --help` reads a table, and a command's module only when it is called.
"""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the `fabric` command of this process and exits with its code."""
    from fabric.cli.app import run

    sys.exit(run(sys.argv[1:]))
