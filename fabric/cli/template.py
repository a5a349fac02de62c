"""`fabric template`: chat records rendered with a model's own template, or records as tokens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from typer import Option

from fabric.cli import console, options
from fabric.errors import UsageError

if TYPE_CHECKING:
    from fabric.text.render import RenderReport


def command(
    data: options.Records = None,
    model: options.Model = ...,  # type: ignore[assignment]
    output: options.Output = "-",
    template: options.Template = None,
    tokens: Annotated[bool, Option("--tokens", help="write token records instead of text")] = False,
    check: Annotated[bool, Option("--check", help="write nothing; show lengths and what trains")] = False,
    ctx: Annotated[
        int | None, Option("--ctx", metavar="TOKENS", min=8, help="longest row; needs --tokens or --check")
    ] = None,
    stride: Annotated[
        int | None, Option("--stride", metavar="TOKENS", min=1, help="between windows of a text; default: none overlap")
    ] = None,
) -> None:
    """Renders chat records and marks what the model must produce: each answer with its end-of-turn token.

    Records of other kinds pass through. `train` does this by itself; here it can be seen, with room for other tools.
    """
    from fabric.files import check_streams, open_output
    from fabric.text.render import RenderSettings, render

    source = console.stdin_source(data)
    check_streams([source, model, template], [output])
    if (ctx or stride) and not (tokens or check):
        raise UsageError("--ctx and --stride cut tokens; add --tokens or --check")
    settings = RenderSettings(source, model, template, tokens, check, ctx, stride)
    if check:
        with open("/dev/null", "wb") as nowhere:  # noqa: PTH123
            report = render(settings, nowhere)
        console.report(report.to_json(), describe(report), result=True)
        return
    with open_output(output, text=True) as file:
        report = render(settings, file)
    if console.flag("json") or not sys.stdout.isatty():
        console.report(report.to_json(), summary(report), output)


def summary(report: RenderReport) -> str:
    """One line."""
    nothing = f", {report.nothing_to_train:,} with nothing to train on" if report.nothing_to_train else ""
    cut = f", {report.encoded.cut:,} cut" if report.encoded and report.encoded.cut else ""
    return f"{report.rows:,} rows read, {report.written:,} written{nothing}{cut}"


def describe(report: RenderReport) -> str:
    """What --check found: counts, lengths, and the first row with its trained part in brackets."""
    values = report.to_json()
    counts = report.encoded
    parts = [f"{report.rows:,} rows, {report.nothing_to_train:,} with nothing to train on"]
    if counts is not None:
        parts[0] += f"; {counts.tokens:,} tokens, of which {counts.trained:,} train; {counts.cut:,} rows cut"
    if "lengths" in values:
        parts.append("tokens a row: " + ", ".join(f"{name} {value:,}" for name, value in values["lengths"].items()))
    text, inside = "", False
    for piece, trained in report.sample:
        text += ("[" if trained and not inside else "]" if inside and not trained else "") + piece
        inside = trained
    if text:
        parts.append("the first row; what trains is in [brackets]:\n" + text + ("]" if inside else ""))
    return "\n".join(parts)
