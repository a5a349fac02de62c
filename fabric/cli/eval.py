"""`fabric eval`: perplexity, loss and labelled accuracy of a model on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Option

from fabric.cli import console, options
from fabric.cli.merge import adapter_input

if TYPE_CHECKING:
    from fabric.evaluation.settings import EvalReport, Score


def command(
    data: options.Records = None,
    model: options.Model = ...,  # type: ignore[assignment]
    adapter: options.Adapters = None,
    compare: Annotated[bool, Option("--compare", help="score the base without adapters too")] = False,
    labels: Annotated[
        str | None, Option("--labels", metavar="NAMES", help="to choose from; default: those of the rows")
    ] = None,
    ctx: options.Context = 512,
    stride: Annotated[
        int | None, Option("--stride", metavar="TOKENS", min=1, help="between windows of a text; default: none overlap")
    ] = None,
    template: options.Template = None,
    precision: options.Precision = "auto",
    threads: options.Threads = 0,
    device: options.Device = "cpu",
) -> None:
    """Scores rows: loss per trained token, its exponential (perplexity), and accuracy where rows have a `label`.

    A label counts as right when the model finds it the likeliest beginning of the answer.
    """
    from fabric.evaluation.evaluate import evaluate
    from fabric.evaluation.settings import EvalSettings
    from fabric.files import check_streams

    source = console.stdin_source(data)
    adapters = tuple(adapter_input(text) for text in adapter or ())
    check_streams([source, model, template, *(a.path for a in adapters)], [])
    settings = EvalSettings(
        data=source,
        model=model,
        adapters=adapters,
        compare=compare,
        labels=tuple(name.strip() for name in labels.split(",") if name.strip()) if labels else (),
        ctx=ctx,
        stride=stride,
        template=template,
        precision=precision,
        threads=threads,
        device=device,
    )
    with console.bar("eval", " tokens") as progress:
        report = evaluate(settings, progress)
    for text in report.notes:
        console.note(text)
    console.report(report.to_json(), describe(report), result=True)


def describe(report: EvalReport) -> str:
    """The scores as a table."""
    scores = {"model": report.score} if report.base is None else {"base": report.base, "tuned": report.score}
    rows = [["", *scores]]
    rows.append(["loss per trained token", *(f"{s.loss:.4f}" for s in scores.values())])
    rows.append(["perplexity", *(f"{s.perplexity:.3f}" for s in scores.values())])
    if any(s.accuracy for s in scores.values()):
        rows.append(["accuracy", *(_share(s) for s in scores.values())])
        rows.append(["commonest label", *(f"{100 * s.accuracy.majority:.1f} %" for s in scores.values() if s.accuracy)])
    counts = f"{report.rows:,} rows, {report.tokens:,} tokens, {report.trained_tokens:,} scored"
    return f"{console.table(rows, '<')}\n{counts}; {report.tokens_per_s:.0f} tokens/s in {report.precision}"


def _share(score: Score) -> str:
    a = score.accuracy
    return f"{100 * a.accuracy:.1f} % ({a.right} of {a.rows})" if a else ""
