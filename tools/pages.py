"""Writes completions/, man/ and docs/commands.md from the command definitions, and pages of section 5 from docs/.

python tools/pages.py            write them
python tools/pages.py --check    exit 1 when one of them is stale
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from fabric.cli.app import COMMANDS, EPILOG, group, load
from fabric.cli.completion import HELP_OPTION, bash, fish, flags, metavar, powershell, zsh
from fabric.cli.examples import EXAMPLES
from fabric.cli.flags import sections as flag_sections

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "FABRIC_<FLAG>": "the default of a flag, in capitals and with _ for -: FABRIC_LR_MIN",
    "NO_COLOR": "set: no colours",
    "TERM": "dumb: no bar, no colours, plain characters",
    "XDG_CONFIG_HOME": "where fabric/config.toml and fabric/profiles lie; else ~/.config",
    "XDG_CACHE_HOME": "where kernels built for a GPU are kept; else ~/.cache",
}


def arguments(name: str) -> list[click.Argument]:
    """A command's operands."""
    return [p for p in load(name).params if isinstance(p, click.Argument)]


def operand(argument: click.Argument) -> str:
    """DATA, [DATA] or [METRICS...]"""
    text = argument.metavar or (argument.name or "").upper()
    return text if argument.required else f"[{text}]"


def default(option: click.Option) -> str:
    """The default as text; empty where there is none or it is a switch."""
    plain = option.default is None or option.is_flag or option.required
    return "" if plain or not isinstance(option.default, (str, int, float)) else str(option.default)


def help_text(option: click.Option) -> str:
    """The help with what is required or default."""
    known = default(option)
    return (option.help or "") + (" (required)" if option.required else f" (default: {known})" if known else "")


def roff(text: str) -> str:
    """Text safe inside a man page."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def example(what: str, line: str) -> list[str]:
    """What a line does, and the line, which is not broken."""
    return [".TP", roff(what[0].upper() + what[1:]), ".EX", f".B {roff(line)}", ".EE"]


def sections(name: str) -> list[tuple[str, list[click.Option]]]:
    """A command's options by the sections of its help, --help last."""
    *before, (title, last) = flag_sections(load(name))
    return [*before, (title, [*last, HELP_OPTION])]


def paragraphs(name: str) -> list[str]:
    """The command's own description."""
    text = (load(name).help or "").strip()
    return [" ".join(part.split()) for part in text.split("\n\n")]


def man(name: str) -> str:
    """The man page of a subcommand: examples come first."""
    lines = [f'.TH FABRIC\\-{name.upper()} 1 "" "fabric" "fabric manual"', ".SH NAME"]
    lines += [f"fabric\\-{name} \\- {roff(COMMANDS[name])}", ".SH SYNOPSIS", f".B fabric {name}", "[options]"]
    lines += [roff(operand(argument)) for argument in arguments(name)]
    lines.append(".SH EXAMPLES")
    for what, line in EXAMPLES[name]:
        lines += example(what, line)
    lines.append(".SH DESCRIPTION")
    for part in paragraphs(name):
        lines += [roff(part), ".PP"]
    lines.append(".SH OPTIONS")
    for title, options in sections(name):
        lines += [f".SS {title}"] if title != "Options" else []
        for option in options:
            lines += [
                ".TP",
                f".B {roff(', '.join(flags(option)))} {roff(metavar(option))}".rstrip(),
                roff(help_text(option)),
            ]
    lines += [".SH SEE ALSO", ".BR fabric (1)", ""]
    return "\n".join(lines)


def man_top() -> str:
    """fabric(1)."""
    lines = [
        '.TH FABRIC 1 "" "fabric" "fabric manual"',
        ".SH NAME",
        f"fabric \\- {roff(group().help or '')}",
        ".SH SYNOPSIS",
    ]
    lines += [".B fabric", "command [options]", ".SH EXAMPLES"]
    lines += [*example("from raw rows to a small tuned model", PIPELINE), ".SH COMMANDS"]
    for name, what in COMMANDS.items():
        lines += [".TP", f".BR fabric\\-{name} (1)", roff(what)]
    lines += [".SH CONVENTIONS", *(roff(line) for line in EPILOG.splitlines()), ".SH EXIT STATUS"]
    for code, what in EXIT_CODES.items():
        lines += [".TP", f".B {code}", roff(what)]
    lines.append(".SH ENVIRONMENT")
    for variable, what in ENVIRONMENT.items():
        lines += [".TP", f".B {roff(variable)}", roff(what)]
    lines += [".SH SEE ALSO", ".BR fabric.toml (5),", ".BR fabric\\-records (5)"]
    return "\n".join([*lines, ""])


def inline(text: str) -> str:
    """A line of Markdown: code in bold, links as their texts."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    parts = [roff(part) for part in re.split(r"[`*]+", text.replace("\\|", "|"))]
    return parts[0] + "".join((r"\fB" if i % 2 == 0 else r"\fR") + part for i, part in enumerate(parts[1:]))


def man_of(name: str, what: str, document: Path) -> str:
    """A page of section 5 from a page of docs/: headings, paragraphs, lists, tables (a row a term) and code."""
    lines = [f'.TH {roff(name.upper())} 5 "" "fabric" "fabric manual"', ".SH NAME", f"{roff(name)} \\- {roff(what)}"]
    lines.append(".SH DESCRIPTION")
    for block in re.findall(r"(?s)```.*?\n```|\S.*?(?=\n\n|\Z)", document.read_text(encoding="utf-8"))[1:]:
        first, *rest = block.splitlines()
        if first.startswith("```"):
            lines += [".PP", ".EX", *(roff(line) for line in rest[:-1]), ".EE"]
        elif first.startswith("#"):
            lines.append(f".SH {roff(first.lstrip('# ').upper())}")
        elif first.startswith("|"):
            for term, *cells in (re.split(r"(?<!\\)\|", line)[1:-1] for line in rest[1:]):
                lines += [".TP", inline(term.strip()), inline("; ".join(cell.strip() for cell in cells))]
        elif first.startswith("- "):
            for item in re.split(r"(?m)^- ", block)[1:]:
                lines += [r".IP \[bu] 2", inline(" ".join(item.split()))]
        else:
            lines += [".PP", inline(" ".join([first, *rest]))]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR fabric (1)", ""])


PIPELINE = (
    "fabric prepare raw.jsonl | fabric template -m base.gguf | fabric train -m base.gguf -o - "
    "| fabric merge -m base.gguf -a - | fabric quantize --type q4_0 -o tuned.gguf"
)
EXIT_CODES = {
    0: "done",
    2: "flags that make no sense",
    65: "data or a model that is not what it claims to be",
    66: "an input that is missing or unreadable",
    69: "no such device, or the job does not fit it",
    70: "an internal error",
    74: "reading or writing failed half-way",
    75: "stopped by SIGTERM; fabric resume continues",
    76: "the loss diverged",
    130: "stopped by Ctrl-C; train can be resumed",
}


def markdown() -> str:
    """docs/commands.md."""
    lines = [
        "# Commands",
        "",
        "Written by tools/pages.py from the command definitions; `fabric NAME --help` says the same.",
        "",
    ]
    lines += ["```sh", PIPELINE.replace(" | ", " \\\n  | "), "```", "", EPILOG.replace("\n", " "), ""]
    for name, what in COMMANDS.items():
        usage = " ".join(["fabric", name, "[options]", *(operand(argument) for argument in arguments(name))])
        lines += [f"## {name}", "", f"{what[0].upper()}{what[1:]}. `{usage}`", ""]
        lines += [part + "\n" for part in paragraphs(name)]
        lines += ["```sh", *(f"# {example}\n{line}" for example, line in EXAMPLES[name]), "```", ""]
        for title, options in sections(name):
            lines += [f"**{title}**", ""] if title != "Options" else []
            lines += ["| flag | | default |", "|---|---|---|"]
            for option in options:
                spelled = ", ".join(f"`{flag}`" for flag in flags(option))
                value = f" `{metavar(option)}`".replace("|", "\\|") if metavar(option) else ""
                known = "required" if option.required else default(option)
                lines.append(f"| {spelled}{value} | {(option.help or '').replace('|', chr(92) + '|')} | {known} |")
            lines.append("")
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {what} |" for code, what in EXIT_CODES.items()]
    lines += ["", "## Environment", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{variable}` | {what} |" for variable, what in ENVIRONMENT.items()]
    return "\n".join([*lines, ""])


def pages() -> dict[Path, str]:
    """Every file and what it should hold."""
    found = {
        ROOT / "completions/fabric.bash": bash(),
        ROOT / "completions/_fabric": zsh(),
        ROOT / "completions/fabric.fish": fish(),
        ROOT / "completions/fabric.ps1": powershell(),
        ROOT / "docs/commands.md": markdown(),
        ROOT / "man/fabric.1": man_top(),
        ROOT / "man/fabric.toml.5": man_of("fabric.toml", "defaults of flags", ROOT / "docs/configuration.md"),
        ROOT / "man/fabric-records.5": man_of("fabric-records", "what a row may look like", ROOT / "docs/records.md"),
    }
    return found | {ROOT / f"man/fabric-{name}.1": man(name) for name in COMMANDS}


def main() -> int:
    """Writes, or with --check compares."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run python tools/pages.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(pages()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
