"""`fabric prepare`: raw rows become training records."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fabric.cli import console
from fabric.data.settings import PrepareSettings
from fabric.settings import Output

if TYPE_CHECKING:
    from fabric.data.prepare import PrepareReport


def command(settings: PrepareSettings, output: Output = "-") -> None:
    """Turns JSONL (chat, prompt/completion, alpaca, ShareGPT, question/answer), CSV or text into training records.

    Other fields, such as `label`, pass through.
    """
    from fabric.data.prepare import prepare
    from fabric.files import open_output

    with console.bar("prepare", "B") as progress, open_output(output, text=True) as file:
        report = prepare(settings, file, progress)
    for reason in report.bad_rows:
        console.note(reason)
    console.report(dataclasses.asdict(report), summary(report), output)


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
