"""`fabric completion`: what a shell completes, from the definitions of the commands; no process is started for it."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Literal

import click

from fabric.cli.app import COMMANDS, load
from fabric.cli.flags import setting_of
from fabric.settings import Setting


def command(
    shell: Annotated[Literal["bash", "zsh", "fish"], Setting("whose completion to print", "SHELL", operand=True)],
) -> None:
    """Prints the completion of a shell. Packages install it; this is for shells of your own.

    It completes commands, flags, values and files.
    """
    sys.stdout.write({"bash": bash, "zsh": zsh, "fish": fish}[shell]())


def options(name: str) -> list[click.Option]:
    """A command's options, --help last."""
    command = load(name)
    found = [p for p in command.params if isinstance(p, click.Option)]
    return [*found, click.Option(["-h", "--help"], is_flag=True, help="show how to use it")]


def values(option: click.Option) -> list[str]:
    """The values that an option takes, where they are few."""
    return [str(choice) for choice in option.type.choices] if isinstance(option.type, click.Choice) else []


def metavar(option: click.Option) -> str:
    """What stands behind the flag: FILE, a|b|c, or nothing for a switch."""
    return "" if option.is_flag else option.metavar or "|".join(values(option)) or "X"


def flags(option: click.Option) -> list[str]:
    """Every spelling, the negative ones too."""
    return [*option.opts, *option.secondary_opts]


def bash() -> str:
    """Completion for bash: plain case tables, no process is started."""
    cases, value_cases = [], []
    for name in COMMANDS:
        words = " ".join(flag for option in options(name) for flag in flags(option))
        cases.append(f'        {name}) words="{words}" ;;')
        for option in options(name):
            spelled = "|".join(f"{name}:{flag}" for flag in option.opts)
            if values(option):
                value_cases.append(
                    f'        {spelled}) COMPREPLY=($(compgen -W "{" ".join(values(option))}" -- "$cur")); return ;;'
                )
            elif setting_of(option).path:
                value_cases.append(f'        {spelled}) COMPREPLY=($(compgen -f -- "$cur")); return ;;')
            elif not option.is_flag:
                value_cases.append(f"        {spelled}) return ;;")
    return "\n".join(
        [
            "# bash completion for fabric; written by tools/pages.py",
            "_fabric() {",
            "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}",
            '    local command=${COMP_WORDS[1]} words=""',
            "    COMPREPLY=()",
            '    if [ "$COMP_CWORD" -eq 1 ]; then',
            f'        COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$cur")); return',
            "    fi",
            '    case "$command:$prev" in',
            *value_cases,
            "    esac",
            '    case "$command" in',
            *cases,
            "    esac",
            '    case "$cur" in',
            '        -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;',
            '        *) COMPREPLY=($(compgen -f -- "$cur")) ;;',
            "    esac",
            "}",
            "complete -o filenames -F _fabric fabric",
            "",
        ]
    )


def zsh() -> str:
    """Completion for zsh."""

    def clean(text: str) -> str:
        return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")

    lines = [
        "#compdef fabric",
        "# zsh completion for fabric; written by tools/pages.py",
        "_fabric() {",
        "  local -a commands",
    ]
    lines.append("  commands=(")
    lines += [f"    '{name}:{clean(what)}'" for name, what in COMMANDS.items()]
    lines += ["  )", "  if (( CURRENT == 2 )); then", "    _describe command commands; return", "  fi"]
    lines += ["  local command=$words[2]", "  shift words; (( CURRENT-- ))", '  case "$command" in']
    for name in COMMANDS:
        lines.append(f"    {name}) _arguments -s \\")
        for option in options(name):
            value = ""
            if values(option):
                value = f":{clean(option.name or '')}:({' '.join(values(option))})"
            elif not option.is_flag:
                value = f":{clean(metavar(option))}:" + ("_files" if setting_of(option).path else "")
            many = "*" if option.multiple else ""
            for flag in flags(option):
                lines.append(f"      '{many}{flag}[{clean(option.help or '')}]{value}' \\")
        lines.append("      '*:file:_files' ;;")
    lines += ["  esac", "}", '_fabric "$@"', ""]
    return "\n".join(lines)


def fish() -> str:
    """Completion for fish."""

    def quote(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [
        "# fish completion for fabric; written by tools/pages.py",
        "complete -c fabric -n __fish_use_subcommand -f",
    ]
    for name, what in COMMANDS.items():
        lines.append(f"complete -c fabric -n __fish_use_subcommand -a {name} -d {quote(what)}")
    for name in COMMANDS:
        for option in options(name):
            spelled = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in flags(option))
            value = f" -x -a {quote(' '.join(values(option)))}" if values(option) else ""
            if not value and not option.is_flag:
                value = " -r" + (" -F" if setting_of(option).path else " -f")
            seen = f"'__fish_seen_subcommand_from {name}'"
            lines.append(f"complete -c fabric -n {seen} {spelled}{value} -d {quote(option.help or '')}")
    return "\n".join([*lines, ""])
