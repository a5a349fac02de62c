"""What commands say: notes and progress on stderr, results and reports on stdout.

A bar is drawn on a terminal only; NO_COLOR, TERM=dumb, -q and --json are honoured here and nowhere else. Whatever is
said here may hold names and texts of strangers, so it passes through `fabric.printable`.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from fabric.errors import UsageError
from fabric.printable import human_bytes as human_bytes
from fabric.printable import human_seconds as human_seconds
from fabric.printable import one_line, printable, shortened
from fabric.system import draws

MOST_CELL_CHARS = 200
_bars: list[Any] = []  # drawn now: a line takes their place, and they go on below it


def flag(name: str) -> bool:
    """Whether -q, --json or --debug was given to the running command."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.meta.get(f"fabric.{name}"))


def given(*names: str) -> list[str]:
    """Those flags that were typed on the command line, as opposed to configured or left at their defaults."""
    ctx = click.get_current_context()
    flags = {param.name: max(param.opts, key=len) for param in ctx.command.params}
    return [flags[name] for name in names if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE]


def speaker() -> str:
    """What a line begins with: the command, where several may write to the same place, as in a pipe or in a log."""
    ctx = click.get_current_context(silent=True)
    alone = sys.stderr.isatty() and not any(map(_is_piped, (0, 1)))
    return "" if alone or ctx is None else f"{ctx.command_path}: "


def _is_piped(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def note(text: str) -> None:
    """One line for the person at the terminal."""
    for drawn in _bars:
        drawn.clear()
    if not flag("quiet"):
        print(speaker() + one_line(text), file=sys.stderr, flush=True)


def notes(text: str) -> None:
    """Several lines for the person at the terminal, such as a table."""
    if not flag("quiet"):
        lines = printable(text).split("\n")
        print("\n".join(speaker() + line for line in lines), file=sys.stderr, flush=True)


def wants_bar() -> bool:
    """Whether progress is drawn: a capable terminal, and nobody asked for silence."""
    return not flag("quiet") and not flag("json") and draws(sys.stderr)


def wants_color(stream: Any) -> bool:
    """Whether a stream may get colours."""
    return not os.environ.get("NO_COLOR") and draws(stream)


def report(
    values: Mapping[str, Any], text: str, *outputs: str | None, result: bool = False, colored: bool = False
) -> None:
    """Says how a command ended: `text`, or `values` as one JSON object with --json.

    A report that is the command's result goes to stdout; any other goes to stderr as text, and as JSON to stdout
    unless one of `outputs` is stdout and already there. colored: the text has colours, and is printable but for them.
    """
    if flag("json"):
        from fabric.files import is_stdout

        taken = any(output is not None and is_stdout(output) for output in outputs)
        print(json_text(values), file=sys.stderr if taken else sys.stdout, flush=True)
    elif result:
        print(text if colored else printable(text), flush=True)
    else:
        notes(text)


def json_text(value: Any) -> str:
    """JSON on one line that every reader takes: NaN and infinities as strings, nothing that acts on a terminal."""
    return printable(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def bar(label: str, unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar for callbacks of (done, total), unit "B" for bytes; None where no bar is drawn."""
    if not wants_bar():
        yield None
        return
    from tqdm import tqdm

    scale = unit == "B"
    with tqdm(desc=label, unit=unit, unit_scale=scale, leave=False, file=sys.stderr, dynamic_ncols=True) as drawn:

        def move(done: int, total: int) -> None:
            drawn.total = total
            drawn.update(done - drawn.n)

        _bars.append(drawn)
        try:
            yield move
        finally:
            _bars.remove(drawn)


def stdin_source(source: str | None) -> str:
    """The input of a filter: what was named, or stdin when something is piped in."""
    if source is not None:
        return source
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("nothing to read: name a file, or pipe rows in")
    return "-"


def refuse_terminal(output: str | None) -> None:
    """Refuses to send a binary result to a terminal, before any work."""
    from fabric.files import is_terminal

    if output is not None and is_terminal(output):
        raise UsageError(f"--output {output}: a GGUF file does not belong on a terminal; name a file, or pipe it on")


def weights_kept(kept: str, decoded: int) -> str:
    """How frozen weights are kept, and what that takes."""
    return f"decoded to 16 bits, {human_bytes(decoded)}" if kept == "16bit" else "as the file has them"


def cell_text(text: str) -> str:
    """Text for one cell of a table: printable, on one line, and not endless."""
    return printable(shortened(text, MOST_CELL_CHARS)).replace("\n", "\\n").replace("\t", "\\t")


def table(rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Plain columns; `align` holds `<` or `>` a column."""
    cells = [[cell_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    align = align.ljust(len(widths), ">")
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
