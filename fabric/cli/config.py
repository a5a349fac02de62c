"""Where a flag's default comes from: FABRIC_<FLAG>, then the file of --config, then ./fabric.toml, then the user's
config.toml.

A file holds flags by their long names, at the top for every command or in a table named after one:

    threads = 2
    [train]
    rank = 16

What a command reads and writes is on its command line alone: a folder may be a stranger's, and a pipe must not lose to
a file that nobody named. So operands, flags that name files, and flags that choose another task have no such defaults.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from fabric.cli import foreign
from fabric.cli.flags import setting_of
from fabric.errors import MissingInputError, UsageError
from fabric.settings import is_number, problem

CONFIG = "config"
PREFIX = "FABRIC_"
MOST_BYTES = 1 << 20


def defaults(command: click.Command, args: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The defaults of a command's flags by the names of its parameters, and what to say of foreign variables.

    All that files and environment say is checked, also what another place overrides and what is of another command:
    UsageError for a name nobody knows and for a value that its flag would not take.
    """
    flags = _flags(command)
    values: dict[str, Any] = {}
    named = _named(args) if CONFIG in flags else None
    if named is not None and not named.is_file():
        raise MissingInputError(f"--config {named}: there is no such file")
    for path in (user_file(), Path("fabric.toml"), *([named] if named else [])):
        if path.is_file():
            for flag, value in _read(path, command).items():
                values[flags[flag].name or flag] = value
    for flag, param in flags.items():
        variable = _variable(flag)
        if variable in os.environ and isinstance(param, click.Option):
            owner = _owner(command, flag)
            value = _checked(owner, flag, os.environ[variable], variable)
            if owner is command:
                values[param.name or flag] = value
    return values, _foreign_variables(flags)


def _configurable(command: click.Command, flag: str) -> bool:
    """Whether files and the environment may give a flag's default."""
    param = _flags(command)[flag]
    return isinstance(param, click.Option) and setting_of(param).configurable


def _owner(command: click.Command, flag: str) -> click.Command:
    """The command whose flag a name at the top stands for: this one, or another where only that one takes it from
    afar."""
    if flag in _flags(command) and _configurable(command, flag):
        return command
    others = [other for other in map(_load, _commands()) if flag in _flags(other)]
    return next((other for other in others if _configurable(other, flag)), others[0])


def bounded(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """Refuses a value out of its setting's range."""
    if wrong := problem(setting_of(param), value):
        raise click.BadParameter(f"it {wrong}.", ctx, param)


def explained(error: click.BadParameter, kind: click.ParamType[Any], values: Iterable[object]) -> str:
    """What is wrong with a value, and the choice that one of `values` nearly is."""
    message = error.message.replace("integer range", "integer").replace("float range", "number")
    choices = [str(choice) for choice in kind.choices] if isinstance(kind, click.Choice) else []
    for value in values:
        close = get_close_matches(str(value), choices, 1)
        if close and value not in choices:
            return f"{message} Did you mean {close[0]!r}?"
    return message


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


def cuda_toolkit() -> Path | None:
    """The CUDA toolkit that the environment names, as NVIDIA's own programs read it."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return Path(named) if named else None


def oneapi() -> Path | None:
    """The oneAPI compiler's folder that the environment names, as Intel's own setvars.sh sets it."""
    named = os.environ.get("CMPLR_ROOT")
    return Path(named) if named else None


def _named(args: Sequence[str]) -> Path | None:
    """The file of --config, which must be known before the other flags get their defaults."""
    found = None
    for i, arg in enumerate(args):
        if arg == "--config" and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith("--config="):
            found = arg.partition("=")[2]
    return Path(found) if found else None


def _flags(command: click.Command) -> dict[str, click.Parameter]:
    """A command's parameters by their long names without dashes."""
    return {max(param.opts, key=len).lstrip("-"): param for param in command.params}


def _variable(flag: str) -> str:
    return PREFIX + flag.upper().replace("-", "_")


def _foreign_variables(flags: Mapping[str, click.Parameter]) -> list[str]:
    """What to say of variables that are called as ours and of no flag: other programs have such names too, so only one
    that is nearly a flag's is refused."""
    told = []
    ours = {_variable(flag) for flag, param in flags.items() if isinstance(param, click.Option)}
    if strangers := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in ours):
        ours = {_variable(flag) for flag in _all_flags()}
    for name in strangers:
        if name not in ours:
            if close := get_close_matches(name[len(PREFIX) :], [flag[len(PREFIX) :] for flag in ours], 1, 0.75):
                raise UsageError(f"{name}: no flag is called so; did you mean {PREFIX}{close[0]}?")
            told.append(f"{name}: no flag is called so, and it is ignored")
    return told


def _checked(command: click.Command, flag: str, value: object, place: str) -> Any:
    """A value as it would be typed, if the flag would take it: so 8.5 is no count, and true is no number."""
    param = _flags(command)[flag]
    if not _configurable(command, flag) or (setting_of(param).path and not is_number(value)):
        raise UsageError(f"{place}: only the command line can set this, for it decides what is read or written")
    many = param.nargs != 1 or (isinstance(param, click.Option) and param.multiple)
    if isinstance(value, dict) or (isinstance(value, list) and not many):
        raise UsageError(f"{place} takes one value")
    ctx, values = click.Context(command), value if isinstance(value, list) else [value]
    try:
        typed = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
        taken = typed if many else typed[0]
        bounded(ctx, param, param.type_cast_value(ctx, taken))
    except click.BadParameter as error:
        raise UsageError(f"{place}: {explained(error, param.type, typed)}") from None
    except ValueError:
        raise UsageError(f"{place}: the number is too large") from None
    return taken


def _read(path: Path, command: click.Command) -> dict[str, Any]:
    """What a file says for a command, by flag; its table comes before the top."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    top, table = {}, {}
    for name, value in document.items():
        place = f"{path}:{_line(text, name)}"
        if isinstance(value, dict):
            _known(place, name, _commands(), "command")
            owner = command if name == command.name else _load(name)
            for inner, content in value.items():
                flag, place = inner.replace("_", "-"), f"{path}:{_line(text, inner, name)}"
                _known(place, flag, _flags(owner), "flag")
                content = _checked(owner, flag, content, f"{place}: {flag}")
                if owner is command:
                    table[flag] = content
        else:
            flag = name.replace("_", "-")
            if flag not in _flags(command):
                _known(place, flag, {flag for other in map(_load, _commands()) for flag in _flags(other)}, "flag")
            owner = _owner(command, flag)
            value = _checked(owner, flag, value, f"{place}: {flag}")
            if owner is command:
                top[flag] = value
    return {**top, **table}


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


def _known(place: str, name: str, names: Collection[str], kind: str) -> None:
    if name not in names:
        if kind == "flag" and (told := foreign.hint(name)):
            raise UsageError(f"{place}: {told}")
        close = get_close_matches(name, names, 1)
        raise UsageError(f"{place}: there is no {kind} {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


def _commands() -> set[str]:
    from fabric.cli.app import COMMANDS

    return set(COMMANDS)


def _load(name: str) -> click.Command:
    from fabric.cli.app import load

    return load(name)


def _all_flags() -> set[str]:
    """Flags of every command; the modules are small, and only foreign names need this."""
    commands = map(_load, _commands())
    return {flag for command in commands for flag, param in _flags(command).items() if isinstance(param, click.Option)}
