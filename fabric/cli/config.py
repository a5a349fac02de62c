"""Where a flag's default comes from: FABRIC_<FLAG>, then ./fabric.toml, then the user's config.toml.

A file holds flags by their long names, at the top for every command or in a table named after one:

    threads = 2
    [train]
    rank = 16
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from fabric.errors import UsageError


def defaults(command: click.Command) -> tuple[dict[str, Any], dict[str, str]]:
    """The defaults of a command's options, and where each was set; UsageError for a name nobody knows."""
    flags = {_long(option): option for option in command.params if isinstance(option, click.Option)}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(flag: str, value: object, origin: str) -> None:
        option = flags[flag]
        name = option.name or flag
        values[name] = value if not option.multiple or isinstance(value, list) else [value]
        origins[name] = origin

    for path in (user_file(), Path("fabric.toml")):
        if path.is_file():
            for flag, value in _read(path, command.name or "", flags).items():
                put(flag, value, str(path))
    for flag in flags:
        variable = "FABRIC_" + flag.upper().replace("-", "_")
        if variable in os.environ:
            put(flag, os.environ[variable], variable)
    return values, origins


def user_file() -> Path:
    """The user's own configuration file, by the XDG rule."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "fabric" / "config.toml"


def kernel_cache() -> Path:
    """Where built kernels are kept, by the XDG rule."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fabric" / "kernels"


def _long(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-")


def _read(path: Path, command: str, flags: dict[str, click.Option]) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    found = {}
    for name, value in document.items():
        flag = name.replace("_", "-")
        if isinstance(value, dict):
            _known(path, name, _commands(), "command")
            if name == command:
                for inner, content in value.items():
                    _known(path, inner.replace("_", "-"), set(flags), "flag")
                    found[inner.replace("_", "-")] = content
        elif flag in flags:
            found.setdefault(flag, value)
        else:
            _known(path, flag, _all_flags(), "flag")
    for flag, value in found.items():
        if isinstance(value, (dict, list)) and not flags[flag].multiple:
            raise UsageError(f"{path}: {flag} takes one value")
    return found


def _known(path: Path, name: str, names: set[str], kind: str) -> None:
    if name not in names:
        close = get_close_matches(name, names, 1)
        raise UsageError(f"{path}: there is no {kind} {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


def _commands() -> set[str]:
    from fabric.cli.app import COMMANDS

    return set(COMMANDS)


def _all_flags() -> set[str]:
    """Flags of every command; their modules are small, and only a file with a foreign flag needs this."""
    from fabric.cli.app import load

    return {_long(p) for name in _commands() for p in load(name).params if isinstance(p, click.Option)}
