"""`fabric eval`: perplexity, loss and labelled accuracy of a model on rows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

from fabric.cli import console
from fabric.errors import UsageError
from fabric.evaluation.settings import Accuracy, EvalReport, EvalSettings, Score
from fabric.settings import Setting

MOST_SHOWN = 8  # labels, in a table of which was taken for which


def command(
    settings: EvalSettings,
    rows: Annotated[
        str | None, Setting("JSONL: loss and chosen label of each row, by model", "FILE", path="out")
    ] = None,
    markdown: Annotated[bool, Setting("the tables as Markdown")] = False,
) -> None:
    """Scores rows: loss per trained token, its exponential (perplexity), and accuracy where rows have a `label`.

    A label counts as right when the model finds it the likeliest beginning of the answer, or with --accuracy generated,
    when the model writes it there.
    """
    from fabric.evaluation.evaluate import evaluate
    from fabric.files import is_stdout, open_output

    if markdown and console.flag("json"):
        raise UsageError("--json and --markdown exclude each other: two forms of the same report")
    with open_output(rows, text=True) if rows is not None else contextlib.nullcontext() as file:
        with console.bar("eval", " tokens") as progress:
            report = evaluate(settings, progress)
        if file is not None:
            file.writelines(f"{console.json_text(row)}\n".encode() for row in report.row_scores)
    for text in report.notes:
        console.note(text)
    console.report(report.to_json(), describe(report, markdown), rows, result=rows is None or not is_stdout(rows))


def describe(report: EvalReport, markdown: bool = False) -> str:
    """The scores as tables, and what a comparison came to."""
    scores = {"model": report.score}
    if report.base:
        scores = {"base": report.base, **dict(zip(_names(report), (a.score for a in report.adapters), strict=True))}
    drawn = _markdown if markdown else lambda rows: console.table(rows, "<")
    parts = [drawn(_scores(scores))]
    if report.adapters:
        parts.append(drawn(_paired(report)))
    for name, score in scores.items():
        if score.accuracy and len(score.accuracy.labels) <= MOST_SHOWN:
            parts.append(drawn(_confusion(name, score.accuracy)))
    counts = f"{report.rows:,} rows, {report.tokens:,} tokens, {report.trained_tokens:,} scored"
    parts.append(f"{counts}; {report.tokens_per_s:.0f} tokens/s in {report.precision}")
    return "\n\n".join(parts)


def _names(report: EvalReport) -> list[str]:
    """Adapters by their file names, or by their paths where those are equal."""
    names = [Path(adapter.name).name for adapter in report.adapters]
    return names if len(set(names)) == len(names) else [adapter.name for adapter in report.adapters]


def _scores(scores: dict[str, Score]) -> list[list[str]]:
    rows = [["", *scores]]
    rows.append(["loss per trained token", *(f"{s.loss:.4f}" for s in scores.values())])
    rows.append(["perplexity", *(f"{s.perplexity:.3f}" for s in scores.values())])
    found = [s.accuracy for s in scores.values() if s.accuracy]
    if found:
        rows.append(["accuracy", *(f"{100 * a.accuracy:.1f} % ({a.right} of {a.rows})" for a in found)])
        rows.append(["95 % interval", *(f"{100 * a.interval[0]:.1f} - {100 * a.interval[1]:.1f} %" for a in found)])
        rows.append(["macro-F1", *(f"{a.macro_f1:.3f}" for a in found)])
        rows.append(["commonest label", *(f"{100 * a.majority:.1f} %" for a in found)])
    ties = [s.near_ties for s in scores.values() if s.near_ties]
    if ties:
        rows.append(["near-ties", *(f"{t.rows} within {t.noise:.2g} nats" for t in ties)])
        ranges = (t.accuracy_range for t in ties)
        rows.append(["accuracy by how they end", *(f"{100 * low:.1f} - {100 * high:.1f} %" for low, high in ranges)])
    return rows


def _paired(report: EvalReport) -> list[list[str]]:
    """A row an adapter, against the base on the same rows."""
    labelled = bool(report.base and report.base.accuracy)
    rows = [["against the base", "loss", "95 % interval", "rows better, worse", "p"]]
    rows[0] += ["gained, lost", "p"] if labelled else []
    for name, adapter in zip(_names(report), report.adapters, strict=True):
        p = adapter.against_base
        interval = f"{p.loss_interval[0]:+.4f} to {p.loss_interval[1]:+.4f}"
        rows.append([name, f"{p.loss_difference:+.4f}", interval, f"{p.better}, {p.worse}", f"{p.loss_p:.2g}"])
        rows[-1] += [f"{p.gained}, {p.lost}", f"{p.accuracy_p:.2g}"] if labelled else []
    return rows


def _confusion(name: str, accuracy: Accuracy) -> list[list[str]]:
    """A row a label, a column what was chosen for it."""
    columns = list(next(iter(accuracy.confusion.values())))
    rows = [[f"{name}: label, chosen", *(column or "none" for column in columns)]]
    return rows + [[label, *(str(n) for n in row.values())] for label, row in accuracy.confusion.items()]


def _markdown(rows: list[list[str]]) -> str:
    escaped = [[console.cell_text(cell).replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])
