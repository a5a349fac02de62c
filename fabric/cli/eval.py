"""`fabric eval`: perplexity, loss and labelled accuracy of a model on rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fabric.cli import console
from fabric.errors import UsageError
from fabric.evaluation.settings import Accuracy, EvalReport, EvalSettings, JudgeReport, Score
from fabric.settings import Setting

Table = Callable[[list[list[str]]], str]
MOST_SHOWN = 8  # labels, in a table of which was taken for which


def command(
    settings: EvalSettings,
    rows: Annotated[
        str | None, Setting("write loss, label, answer and verdict of each row and model as JSONL", "FILE", path="out")
    ] = None,
    markdown: Annotated[bool, Setting("print tables as Markdown")] = False,
) -> None:
    """Scores rows: loss per trained token, its exponential (perplexity), and accuracy where rows have a `label`.

    A label counts as right when the model finds it the likeliest beginning of the answer, or with --accuracy generated,
    when the model writes it there. --measures and --judge look at whole answers, which the model writes.
    """
    from fabric.evaluation.evaluate import check_settings, evaluate
    from fabric.evaluation.judge import judge_fields
    from fabric.files import is_stdout, open_output

    if markdown and console.flag("json"):
        raise UsageError("--json and --markdown exclude each other: two forms of the same report")
    with open_output(rows, text=True) if rows is not None else contextlib.nullcontext() as file:
        report: EvalReport | JudgeReport
        with console.bar("eval", " tokens") as progress:
            if settings.model is None and len(settings.answers) == 2:
                check_settings(settings)
                report = judge_fields(settings, progress)
            else:
                report = evaluate(settings, progress, console.note)
        if file is not None:
            file.writelines(f"{console.json_text(row)}\n".encode() for row in report.row_scores)
    for text in report.notes:
        console.note(text)
    table = _markdown if markdown else lambda rows: console.table(rows, "<")
    text = describe(report, table) if isinstance(report, EvalReport) else describe_judged(report, table)
    console.report(report.to_json(), text, rows, result=rows is None or not is_stdout(rows))


def describe(report: EvalReport, drawn: Table) -> str:
    """The scores as tables, and what a comparison came to."""
    scores = {"model": report.score}
    if report.base:
        scores = {"base": report.base, **dict(zip(_names(report), (a.score for a in report.adapters), strict=True))}
    parts = [drawn(_scores(scores))]
    if report.adapters:
        parts.append(drawn(_paired(report)))
    if report.base and report.base.measures:
        parts.append(drawn(_paired_measures(report)))
    if report.judged:
        parts.append(describe_judged(report.judged, drawn))
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
    for name in next(iter(scores.values())).measures:
        found_measures = [s.measures[name] for s in scores.values()]
        rows.append([f"{name}, of 100", *(f"{m.mean:.1f} ({m.rows} rows)" for m in found_measures)])
        rows.append(["95 % interval", *(f"{m.interval[0]:.1f} - {m.interval[1]:.1f}" for m in found_measures)])
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


def _paired_measures(report: EvalReport) -> list[list[str]]:
    """A row for each measure and adapter, against the base on the same rows."""
    rows = [["against the base", "measure", "difference", "95 % interval", "rows better, worse", "p"]]
    for name, adapter in zip(_names(report), report.adapters, strict=True):
        for measure, m in (adapter.against_base.measures or {}).items():
            interval = f"{m.interval[0]:+.1f} to {m.interval[1]:+.1f}"
            rows.append([name, measure, f"{m.difference:+.1f}", interval, f"{m.better}, {m.worse}", f"{m.p:.2g}"])
    return rows


def describe_judged(report: JudgeReport, drawn: Table) -> str:
    """A row for each contest, and how far the order of the answers decided."""
    rows = [[f"judged by {Path(report.judge).name}", "against", "wins, ties, losses", "win rate", "95 % interval", "p"]]
    lines = []
    for one in report.contests:
        low, high = one.interval
        counts = f"{one.wins}, {one.ties}, {one.losses}"
        rows.append([Path(one.name).name, Path(one.against).name, counts, f"{100 * one.win_rate:.1f} %"])
        rows[-1] += [f"{100 * low:.1f} - {100 * high:.1f} %", f"{one.p:.2g}"]
        low, high = one.scored_interval
        scored = f"{100 * one.scored_rate:.1f} % ({100 * low:.1f} - {100 * high:.1f} %, p {one.scored_p:.2g})"
        if one.first_shown is not None:
            name = f"{Path(one.name).name}: " if len(report.contests) > 1 else ""
            lines.append(
                f"{name}the answer shown first was preferred {100 * one.first_shown:.0f} % of the time (50 %: no "
                f"position bias); {one.same} of {one.ties} ties are the same answer twice; with the scores of both "
                f"orders averaged, the win rate is {scored}"
            )
    return "\n\n".join([drawn(rows), *lines])


def _confusion(name: str, accuracy: Accuracy) -> list[list[str]]:
    """A row a label, a column what was chosen for it."""
    columns = list(next(iter(accuracy.confusion.values())))
    rows = [[f"{name}: label, chosen", *(column or "none" for column in columns)]]
    return rows + [[label, *(str(n) for n in row.values())] for label, row in accuracy.confusion.items()]


def _markdown(rows: list[list[str]]) -> str:
    escaped = [[console.cell_text(cell).replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])
