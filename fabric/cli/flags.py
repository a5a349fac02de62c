"""From declared settings to a command's flags, and from what was typed back to settings.

A command is a function whose parameters are settings, or a dataclass of settings; see fabric/settings.py.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import click
import typer

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import Declared, Group, Setting, declared, files, parts

SWITCH = Setting("")


def setting_of(param: click.Parameter) -> Setting:
    """What a parameter was declared as."""
    found: Setting = getattr(param, "setting", SWITCH)
    return found


def joined(param: click.Parameter) -> bool:
    """Whether a value is several, joined by commas."""
    setting = setting_of(param)
    return get_origin(getattr(param, "type_declared", None)) is tuple and setting.parse is not None and not setting.many


def sections(command: click.Command, most: int = 20) -> list[tuple[str, list[click.Option]]]:
    """A command's options by the sections of its help; one section where there are at most `most`."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    if len(options) <= most:
        return [("Options", options)]
    found: dict[str, list[click.Option]] = {name: [] for name in (*get_args(Group), "All commands")}
    for option in options:
        found[setting_of(option).section if hasattr(option, "setting") else "All commands"].append(option)
    return [(name, group) for name, group in found.items() if group]


def parameters(function: Callable[..., None]) -> dict[str, list[Declared]]:
    """The settings behind each parameter of a command's function: one, or those of a dataclass."""
    hints, found = get_type_hints(function, include_extras=True), {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind, setting = parts(hints[name])
        default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        found[name] = declared(kind) if setting is None else [Declared(name, setting, kind, default)]
    return found


def with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """A function with a parameter for each setting, from which Typer makes the command."""
    hints, expected = get_type_hints(function), parameters(function)

    @functools.wraps(function)
    def command(**typed: Any) -> None:
        values = {one.name: _value(one, typed[one.name]) for group in expected.values() for one in group}
        _check_streams([one for group in expected.values() for one in group], values)
        arguments = {}
        for name, group in expected.items():
            if dataclasses.is_dataclass(hints[name]):
                given = {one.name: values[one.name] for one in group}
                arguments[name] = hints[name](**given)
            else:
                arguments[name] = values[name]
        function(**arguments)

    flat = [one for group in expected.values() for one in group]
    command.__signature__ = inspect.Signature([_parameter(one) for one in flat])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def attach(command: click.Command, function: Callable[..., None]) -> click.Command:
    """Lets each parameter of a command know its setting."""
    known = {one.name: one for group in parameters(function).values() for one in group}
    for param in command.params:
        if one := known.get(param.name or ""):
            setting = one.setting
            param.setting, param.type_declared = setting, one.type  # type: ignore[attr-defined]
            if setting.above is not None:
                param.type = click.FloatRange(min=setting.above, min_open=True)
    return command


def _parameter(one: Declared) -> inspect.Parameter:
    s, kind = one.setting, one.type
    default = s.written if s.parse else one.default
    if s.parse or s.many:
        kind = str
    if s.many:
        kind, default = list[kind], default if default is dataclasses.MISSING else None  # type: ignore[valid-type]
    if s.stdin or default is None:
        kind, default = kind | None, None
    shown: dict[str, Any] = {"help": s.help, "metavar": s.metavar, "show_default": default not in (None, "")}
    low = s.low if s.low is not None else s.above
    plain = int if kind == int or kind == int | None else float  # noqa: E721
    if kind in (int, float, int | None, float | None):
        shown |= {"min": None if low is None else plain(low), "max": None if s.high is None else plain(s.high)}
    if s.operand:
        info: Any = typer.Argument(**shown)
    else:
        is_switch = kind in (bool, bool | None)
        negative = f"/--no-{one.flag}" if is_switch and s.configurable else ""
        info = typer.Option(*([s.short] if s.short else []), f"--{one.flag}{negative}", **shown)
    missing = inspect.Parameter.empty if default is dataclasses.MISSING else default
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=missing, annotation=Annotated[kind, info]
    )


def _value(one: Declared, typed: Any) -> Any:
    """A setting's value from what was typed; None: its default."""
    s = one.setting
    if s.stdin and not typed:
        typed = ["-"] if s.many else "-"
        console.stdin_source(None)
    if typed is None or (s.many and not typed):
        return None if one.default is dataclasses.MISSING else one.default
    parse: Callable[[str], Any] = s.parse or str
    try:
        if s.many:
            values = [parse(text) for text in typed]
            return tuple(values) if get_origin(one.type) is tuple else dict(values)
        return parse(typed) if s.parse else typed
    except ValueError as error:
        raise UsageError(f"--{one.flag} {typed if isinstance(typed, str) else ' '.join(typed)}: {error}") from None


def _check_streams(settings: list[Declared], values: Mapping[str, Any]) -> None:
    from fabric.files import check_streams

    read, written = (
        [path for one in settings for path in files(one.setting, values[one.name], which)] for which in ("in", "out")
    )
    check_streams(read, written)
