"""The page itself: one HTML file with its style, its script and its data inside, which loads nothing.

All texts are escaped by Jinja. The page's policy lets run the one script and the one style that this package has, by
their hashes, so that nothing else would act even if it got in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fabric.reporting import curves, facts, scores
from fabric.reporting.gather import Reading
from fabric.reporting.tables import Table, cell


@dataclass(frozen=True)
class Part:
    """A part of the page, all of tables."""

    id: str
    title: str
    tables: list[Table]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What the page says."""

    title: str
    runs: list[str]
    overview: Table
    charts: list[curves.Chart]
    parts: list[Part]
    undrawn: list[str]
    """Columns of the metrics for which the page has no room."""

    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {"runs": self.runs, "charts": [chart.to_json() for chart in self.charts]}

    def shape(self) -> str:
        """The tables and charts that there are, whatever is in them."""
        tables = [table for part in self.parts for table in part.tables] + [chart.table for chart in self.charts]
        told = [[*table.head, table.id, table.caption, bool(table.note)] for table in tables]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def make_report(readings: Sequence[Reading], evals: Mapping[str, dict[str, Any]], title: str = "") -> Report:
    """What is known of runs, and of models that were evaluated: `evals` are reports of eval by their files."""
    charts, undrawn = curves.charts([reading.metrics for reading in readings])
    samples, left_out = facts.samples(readings)
    scored = [table for i, (name, values) in enumerate(evals.items()) for table in scores.tables(name, values, i)]
    parts = [
        Part("samples", "Samples", samples, f"{left_out:,} more prompts are left out." if left_out else ""),
        Part("scores", "Evaluation", scored),
        Part("settings", "Settings", facts.settings(readings)),
        Part("machine", "Device and memory", [facts.machine(readings)]),
        Part("provenance", "Provenance", facts.provenance(readings)),
    ]
    parts = [Part(p.id, p.title, [table for table in p.tables if table.rows], p.note) for p in parts]
    names = [cell(reading.name) for reading in readings]
    title = cell(title) or f"Training report: {', '.join(cell(reading.metrics.name) for reading in readings)}"
    return Report(title, names, facts.overview(readings), charts, [p for p in parts if p.tables], undrawn)


def render(report: Report, follow: bool = False, embed: bool = True) -> str:
    """The page. `follow`: it asks where it came from for what is new. `embed`: with what its script draws."""
    script, style = _text("page.js"), _text("page.css")
    ids = [("part-runs", "Runs"), *([("part-curves", "Curves")] if report.charts else [])]
    legend = [(f"c{i % curves.COLORS} d{i // curves.COLORS % 4}", name) for i, name in enumerate(report.runs)]
    page: str = _template().render(
        title=report.title,
        made_by=facts.MADE_BY,
        policy=policy(follow),
        style=_trusted(style),
        script=_trusted(script),
        data=_embedded(report.data() if embed else None),
        follow=follow,
        shape=report.shape(),
        parts=ids + [(f"part-{part.id}", part.title) for part in report.parts],
        overview=report.overview,
        legend=legend if len(legend) > 1 else [],
        axes={name: title for name, title in curves.AXES.items() if _has_axis(report, name)},
        charts=[(chart, curves.draw(chart)) for chart in report.charts],
        sections=report.parts,
        width=curves.WIDTH, height=curves.HEIGHT,
        left=curves.LEFT, right=curves.RIGHT, top=curves.TOP, bottom=curves.BOTTOM,
    )  # fmt: skip
    return page


def policy(follow: bool) -> str:
    """What the page may load and run."""
    hashes = {kind: _hash(_text(f"page.{end}")) for kind, end in (("script", "js"), ("style", "css"))}
    told = [f"{kind}-src '{value}'" for kind, value in hashes.items()] + (["connect-src 'self'"] if follow else [])
    return "; ".join(["default-src 'none'", *told, "base-uri 'none'", "form-action 'none'"])


def _has_axis(report: Report, axis: str) -> bool:
    return any(axis in curve.x for chart in report.charts for curve in chart.curves)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _text(name: str) -> str:
    return files("fabric.reporting").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html"))


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _embedded(value: Any) -> Any:
    """JSON that no HTML parser reads as markup."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, allow_nan=False, separators=(",", ":"))
