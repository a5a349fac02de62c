"""`fabric report`: training runs and evaluations as one page that loads nothing, or served while they go on."""

from __future__ import annotations

from typing import Annotated

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import Setting


def command(
    runs: Annotated[
        tuple[str, ...],
        Setting(
            "run directories or names, or files of `train --metrics`", "RUN...", path="in", operand=True, many=True
        ),
    ],
    evals: Annotated[
        tuple[str, ...],
        Setting("what `eval --json` wrote; may be repeated", "FILE", path="in", flag="eval", many=True),
    ] = (),
    output: Annotated[str, Setting("the page; `-`: stdout", "FILE", short="-o", path="out")] = "-",
    title: Annotated[str, Setting("title of the page; default: the names of the runs", "TEXT")] = "",
    follow: Annotated[
        bool, Setting("serve the page on 127.0.0.1 until the runs are over or Ctrl-C", touches="task")
    ] = False,
    port: Annotated[int, Setting("port of --follow; 0: any free one", "N", low=0, high=65535, touches="layout")] = 0,
) -> None:
    """Writes one HTML page about runs: settings, provenance, curves, samples, evaluations, device and memory.

    The page loads nothing and works without scripts. With --follow, fabric serves it to this machine only, and the page
    updates itself.
    """
    from fabric.files import open_output
    from fabric.notices import notice
    from fabric.reporting.gather import gather
    from fabric.reporting.page import make_report, render
    from fabric.reporting.scores import read_scores

    if follow:
        if output != "-" or "-" in runs:
            raise UsageError("--follow serves the page of files that grow: leave out -o, and name no pipe")
        _follow(runs, evals, title, port)
        return
    readings = gather(runs)
    report = make_report(readings, {name: read_scores(name) for name in evals}, title)
    if report.undrawn:
        notice(f"{len(report.undrawn)} columns of the metrics have no curve: {', '.join(report.undrawn)}")
    page = render(report).encode("utf-8", "replace")
    with open_output(output) as file:
        file.write(page)
    values = {"output": output, "bytes": len(page), "runs": report.runs, "charts": len(report.charts)}
    console.report(values, f"{output}: {console.human_bytes(len(page))}" if output != "-" else "", output)


def _follow(runs: tuple[str, ...], evals: tuple[str, ...], title: str, port: int) -> None:
    from fabric.reporting.gather import gather
    from fabric.reporting.page import Report, make_report
    from fabric.reporting.scores import read_scores
    from fabric.reporting.serve import serve
    from fabric.runs.listing import find_run, is_run
    from fabric.runs.state import is_running

    def over() -> bool:
        return all(is_run(place) and not is_running(place) for place in map(find_run, runs))

    def make() -> Report:
        return make_report(gather(runs, growing=True), {name: read_scores(name) for name in evals}, title)

    def ready(address: str) -> None:
        console.report({"url": address}, address, result=True)

    if over():
        raise UsageError(f"{runs[0]} does not go on: fabric report {runs[0]} -o report.html writes its page")
    make()  # what is wrong is said at once
    serve(make, over, port, ready)
    console.note("the runs are over, and the page is no longer served")
