"""`fabric template`: chat records rendered with a model's own template, or records as tokens."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, BinaryIO, cast

from fabric.cli import console
from fabric.errors import UsageError
from fabric.printable import printable
from fabric.settings import Output
from fabric.text.settings import RenderSettings

if TYPE_CHECKING:
    from fabric.text.render import RenderReport


def command(settings: RenderSettings, output: Output = "-") -> None:
    """Renders chat records and marks what the model must produce: each answer with its end-of-turn token.

    Records of other kinds pass through. `train` renders by itself; this command shows the result, also to other tools.
    """
    from fabric.files import is_stdout, open_output
    from fabric.text.render import render

    if (settings.ctx or settings.stride) and not (settings.tokens or settings.check):
        raise UsageError("--ctx and --stride cut tokens; add --tokens or --check")
    if settings.check:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            report = render(settings, nowhere)
        say_skipped(report)
        console.report(report.to_json(), describe(report), result=True, colored=True)
        return
    if is_stdout(output) and sys.stdout.isatty() and not settings.tokens:
        report = render(settings, cast(BinaryIO, Shown()))
    else:
        with open_output(output, text=True) as file:
            report = render(settings, file)
    say_skipped(report)
    if console.flag("json") or not sys.stdout.isatty():
        console.report(report.to_json(), summary(report), output)


def say_skipped(report: RenderReport) -> None:
    """Names the first rows that were left out."""
    for reason in report.bad.named:
        console.note(reason)


class Shown:
    """A terminal, to which rows go as text; what does not train is dim."""

    def write(self, row: bytes) -> int:
        """One rendered record; a blank line follows it."""
        record = json.loads(row)
        text, at = record.get("text", record.get("completion")), 0
        pieces = [(record.get("prompt", ""), False)]
        if text is None:
            text, pieces = row.decode().rstrip(), []
        for start, end in record.get("train", [(0, len(text))]) if pieces else []:
            pieces += [(text[at:start], False), (text[start:end], True)]
            at = end
        print(painted([*pieces, (text[at:], False)]) + "\n")
        return len(row)


def painted(pieces: Iterable[tuple[str, bool]]) -> str:
    """Text whose untrained pieces are dim, or where there are no colours, whose trained ones stand in brackets."""
    around = {False: ("\x1b[2m", "\x1b[0m"), True: ("", "")}
    if not console.wants_color(sys.stdout):
        around = {False: ("", ""), True: ("[", "]")}
    text = ""
    for trained, run in groupby((piece for piece in pieces if piece[0]), lambda piece: piece[1]):
        text += printable("".join(piece for piece, _ in run)).join(around[trained])
    return text


def summary(report: RenderReport) -> str:
    """One line."""
    nothing = f", {report.nothing_to_train:,} with nothing to train on" if report.nothing_to_train else ""
    cut = f", {report.encoded.cut:,} cut" if report.encoded and report.encoded.cut else ""
    return f"{report.rows:,} rows read, {report.written:,} written{nothing}{cut}{skipped(report)}"


def skipped(report: RenderReport) -> str:
    """How many rows were left out, by reason."""
    reasons = report.bad.reasons.most_common()
    return f", {report.bad.rows:,} bad ({'; '.join(f'{n:,}: {reason}' for reason, n in reasons)})" if reasons else ""


def describe(report: RenderReport) -> str:
    """What --check found: counts, lengths, and the first row with its trained part in brackets."""
    values = report.to_json()
    counts = report.encoded
    parts = [f"{report.rows:,} rows, {report.nothing_to_train:,} with nothing to train on{skipped(report)}"]
    if counts is not None:
        parts[0] += f"; {counts.tokens:,} tokens, of which {counts.trained:,} train, in {report.answers:,} spans"
    if "lengths" in values:
        parts.append("tokens a row: " + ", ".join(f"{name} {value:,}" for name, value in values["lengths"].items()))
        parts.append(f"{report.over_context:,} rows are longer than the context of {report.context:,} tokens")
    if report.sample:
        how = "the rest is dim" if console.wants_color(sys.stdout) else "what trains is in [brackets]"
        parts.append(f"the first row; {how}:\n{painted(report.sample)}")
    return "\n".join(parts)
