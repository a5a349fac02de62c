"""Where a flag's default comes from: FABRIC_<FLAG>, then the file of --config, then ./fabric.toml, then the user's
config.toml.

A file holds flags by their long names, at the top for every command or in a table named after one:

    threads = 2
    [train]
    rank = 16
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from fabric.errors import MissingInputError, UsageError

CONFIG = "config"


def defaults(command: click.Command, args: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The defaults of a command's options, and where each was set; UsageError for a name nobody knows."""
    flags = {_long(param): param for param in command.params}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(flag: str, value: object, origin: str) -> None:
        param = flags[flag]
        name = param.name or flag
        values[name] = value if not _many(param) or isinstance(value, list) else [value]
        origins[name] = origin

    named = _named(args) if CONFIG in flags else None
    if named is not None and not named.is_file():
        raise MissingInputError(f"--config {named}: there is no such file")
    for path in (user_file(), Path("fabric.toml"), *([named] if named else [])):
        if path.is_file():
            for flag, value in _read(path, command.name or "", flags).items():
                put(flag, value, str(path))
    for flag, param in flags.items():
        variable = "FABRIC_" + flag.upper().replace("-", "_")
        if variable in os.environ and isinstance(param, click.Option):
            put(flag, os.environ[variable], variable)
    return values, origins


def user_file() -> Path:
    """The user's own configuration file, by the XDG rule."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "fabric" / "config.toml"


def user_profiles() -> Path:
    """The folder of the user's device profiles, beside the configuration file."""
    return user_file().parent / "profiles"


def kernel_cache() -> Path:
    """Where built kernels are kept, by the XDG rule."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fabric" / "kernels"


def _named(args: Sequence[str]) -> Path | None:
    """The file of --config, which must be known before the other flags get their defaults."""
    found = os.environ.get("FABRIC_CONFIG")
    for i, arg in enumerate(args):
        if arg == "--config" and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith("--config="):
            found = arg.partition("=")[2]
    return Path(found) if found else None


def _long(param: click.Parameter) -> str:
    return max(param.opts, key=len).lstrip("-")


def _many(param: click.Parameter) -> bool:
    return param.nargs != 1 or (isinstance(param, click.Option) and param.multiple)


def _read(path: Path, command: str, flags: dict[str, click.Parameter]) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    found, lines = {}, {}
    for name, value in document.items():
        flag = name.replace("_", "-")
        place = f"{path}:{_line(text, name)}"
        if isinstance(value, dict):
            _known(place, name, _commands(), "command")
            if name == command:
                for inner, content in value.items():
                    place = f"{path}:{_line(text, inner, name)}"
                    _known(place, inner.replace("_", "-"), set(flags), "flag")
                    found[inner.replace("_", "-")], lines[inner.replace("_", "-")] = content, place
        elif flag in flags:
            found.setdefault(flag, value)
            lines.setdefault(flag, place)
        else:
            _known(place, flag, _all_flags(), "flag")
    for flag, value in found.items():
        if isinstance(value, (dict, list)) and not _many(flags[flag]):
            raise UsageError(f"{lines[flag]}: {flag} takes one value")
    return found


def _line(text: str, name: str, table: str = "") -> int:
    """Where a table or a key of one stands; its table's line where the key is written in a way of its own."""
    key = rf"\s*(\[\s*)?[\"']?{re.escape(name)}[\"']?\s*[\]=.]"
    inside, at = not table, 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*[\"']?([^\"'\]]+?)[\"']?\s*\]", line):
            inside = header[1] == table if table else header[1] == name
            at = number if inside else at
        if inside and re.match(key, line):
            return number
    return at


def _known(place: str, name: str, names: set[str], kind: str) -> None:
    if name not in names:
        close = get_close_matches(name, names, 1)
        raise UsageError(f"{place}: there is no {kind} {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


def _commands() -> set[str]:
    from fabric.cli.app import COMMANDS

    return set(COMMANDS)


def _all_flags() -> set[str]:
    """Flags of every command; their modules are small, and only a file with a foreign flag needs this."""
    from fabric.cli.app import load

    return {_long(p) for name in _commands() for p in load(name).params}
