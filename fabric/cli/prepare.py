"""`fabric prepare`: raw rows become training records."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from fabric.cli import console, options
from fabric.errors import UsageError

if TYPE_CHECKING:
    from fabric.data.prepare import HoldOut, PrepareReport


def command(
    files: Annotated[
        list[str] | None,
        Argument(metavar="FILE...", help="JSONL, JSON, CSV, TSV or text; `-` or nothing: stdin", show_default=False),
    ] = None,
    output: options.Output = "-",
    format: Annotated[
        Literal["auto", "jsonl", "json", "csv", "tsv", "text", "paragraphs"],
        Option("--format", help="text: a file is one record; paragraphs: divided at blank lines"),
    ] = "auto",
    separator: Annotated[
        str | None,
        Option("--separator", metavar="CHAR", help="between the cells of a table, `tab` for a tab; default: found out"),
    ] = None,
    as_record: Annotated[
        Literal["chat", "completion", "text"], Option("--as", help="what rows with a prompt and an answer become")
    ] = "chat",
    field: Annotated[
        list[str] | None,
        Option("--field", metavar="NEW=OLD", help="rename a field of the rows; may be given again"),
    ] = None,
    keep_fields: Annotated[
        str | None, Option("--keep-fields", metavar="NAMES", help="fields that pass through; default: all")
    ] = None,
    system: Annotated[
        str | None, Option("--system", metavar="TEXT", help="system message of rows that have none")
    ] = None,
    prompt_template: Annotated[
        str | None,
        Option("--prompt-template", metavar="TEXT", help="user message, from {prompt} and other {fields}"),
    ] = None,
    normalize: Annotated[bool, Option("--normalize", help="Unicode NFC, plain spaces and line ends")] = False,
    min_chars: Annotated[int, Option("--min-chars", metavar="N", min=0, help="shortest record")] = 0,
    max_chars: Annotated[int | None, Option("--max-chars", metavar="N", min=1, help="longest record")] = None,
    dedup: Annotated[bool, Option("--dedup", help="keep only the first of equal records")] = False,
    balance: Annotated[
        str | None, Option("--balance", metavar="FIELD", help="keep as many rows of each value as the rarest has")
    ] = None,
    shuffle: Annotated[bool, Option("--shuffle/--no-shuffle", help="put the rows in a new order, by the seed")] = False,
    seed: options.Seed = 42,
    holdout: Annotated[
        list[str] | None,
        Option("--holdout", metavar="FILE=PART", help="hold out this part of the rows in a file; may be given again"),
    ] = None,
    stratify: Annotated[
        str | None, Option("--stratify", metavar="FIELD", help="hold out the same part of each value of a field")
    ] = None,
    on_error: Annotated[
        Literal["stop", "skip"], Option("--on-error", help="stop at a row that cannot be read, or skip it")
    ] = "stop",
) -> None:
    """Turns JSONL (chat, prompt/completion, alpaca, ShareGPT, question/answer), CSV or text into training records.

    Fields that a record is not made of, such as `label`, pass through.
    """
    from fabric.data.prepare import PrepareSettings, prepare
    from fabric.files import check_streams, open_output

    inputs = tuple(files) if files else (console.stdin_source(None),)
    held = tuple(hold_out(text) for text in holdout or ())
    check_streams(inputs, [output, *(h.path for h in held)])
    settings = PrepareSettings(
        inputs=inputs,
        format=format,
        separator="\t" if separator in ("tab", "\\t") else separator,
        as_record=as_record,
        fields=dict(pair(text) for text in field or ()),
        keep=None if keep_fields is None else tuple(name.strip() for name in keep_fields.split(",") if name.strip()),
        system=system,
        prompt_template=prompt_template,
        normalize=normalize,
        min_chars=min_chars,
        max_chars=max_chars,
        drop_duplicates=dedup,
        balance=balance,
        shuffle=shuffle,
        seed=seed,
        hold_out=held,
        stratify=stratify,
        on_error=on_error,
    )
    with console.bar("prepare", "B") as progress, open_output(output, text=True) as file:
        report = prepare(settings, file, progress)
    for reason in report.bad_rows:
        console.note(reason)
    console.report(dataclasses.asdict(report), summary(report), output)


def pair(text: str) -> tuple[str, str]:
    """NEW=OLD."""
    new, equals, old = text.partition("=")
    if not (new and equals and old):
        raise UsageError(f"--field {text}: write NEW=OLD, such as prompt=question")
    return new, old


def hold_out(text: str) -> HoldOut:
    """FILE=PART."""
    from fabric.data.prepare import HoldOut

    path, _, part = text.rpartition("=")
    try:
        fraction = float(part)
    except ValueError:
        fraction = -1.0
    if not path or not 0 < fraction < 1:
        raise UsageError(f"--holdout {text}: write FILE=PART with a part between 0 and 1, such as held.jsonl=0.1")
    return HoldOut(path, fraction)


def summary(report: PrepareReport) -> str:
    """One line: where the rows went."""
    parts = [f"{report.read:,} rows read", f"{report.written:,} written"]
    parts += [f"{count:,} held out in {path}" for path, count in report.held_out.items()]
    lost = {
        "bad": report.bad,
        "duplicates": report.duplicates,
        "too short": report.too_short,
        "too long": report.too_long,
        "left out for balance": report.unbalanced,
    }
    return ", ".join([*parts, *(f"{count:,} {why}" for why, count in lost.items() if count)])
