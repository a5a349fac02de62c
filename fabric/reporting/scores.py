"""What `fabric eval --json` wrote, as tables: scores with their intervals, tests against the base, and confusions.
Whatever else a report of eval holds is shown by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fabric.errors import DataError
from fabric.files import read_input, shown
from fabric.reporting.tables import Table, cell

_MOST_BYTES = 64 << 20
_MOST_LABELS = 40
_MOST_OTHERS = 300
_DEEPEST = 4  # objects in each other whose values are shown
_SCORE = {"loss", "perplexity", "accuracy", "accuracy_interval", "macro_f1", "majority", "labelled_rows", "confusion",
          "labels", "near_ties", "measures"}  # fmt: skip
_PAIRED = {"loss_difference", "loss_interval", "better", "worse", "loss_p", "gained", "lost", "accuracy_p", "measures"}


def read_scores(source: str) -> dict[str, Any]:
    """A report of eval. Raises DataError, MissingInputError."""
    with read_input(source) as file:
        text = file.read(_MOST_BYTES + 1)
    try:
        values = json.loads(text) if len(text) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not {"loss", "contests"}.intersection(values):
        raise DataError(f"{shown(source)}: not a report of eval; write one with fabric eval --json")
    return values


def tables(source: str, values: dict[str, Any], index: int) -> list[Table]:
    """The tables of one report."""
    name = cell(shown(Path(source).name if source != "-" else source))
    adapters = [one for one in _list(values.get("adapters")) if isinstance(one, dict)]
    scored = {"model": values}
    if adapters:
        names = _names(adapters)
        scored = {"base": _dict(values.get("base")), **dict(zip(names, adapters, strict=True))}
    id = f"eval-{index}"
    found = [Table(f"{id}-scores", f"{name}: scores", ["", *scored], _scores(list(scored.values())))]
    if adapters:
        found.append(_paired(f"{id}-paired", name, dict(zip(names, adapters, strict=True))))
        found.append(_paired_measures(f"{id}-measures", name, dict(zip(names, adapters, strict=True))))
    found.append(_judged(f"{id}-judged", name, _dict(values.get("judged")) or values))
    for i, (model, score) in enumerate(scored.items()):
        found += _confusion(f"{id}-confusion-{i}", f"{name}, {model}", score)
        found += _labels(f"{id}-labels-{i}", f"{name}, {model}", score)
    others = list(_others("", values, _SCORE | {"base", "adapters", "judged", "contests"}))
    for model, score in scored.items():
        if score is not values:
            others += _others(f"{model}: ", score, _SCORE | {"name"})
    if others:
        note = f"the first {_MOST_OTHERS:,}" if len(others) > _MOST_OTHERS else ""
        found.append(Table(f"{id}-rest", f"{name}: measured with it", ["", "value"], others[:_MOST_OTHERS], note))
    return [table for table in found if table.rows]


def _scores(scores: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [
        ["loss per trained token", *(_number(s.get("loss")) for s in scores)],
        ["perplexity", *(_number(s.get("perplexity")) for s in scores)],
        ["accuracy", *(_share(s.get("accuracy")) for s in scores)],
        ["95 % interval of the accuracy", *(_interval(s.get("accuracy_interval"), _share) for s in scores)],
        ["macro-F1", *(_number(s.get("macro_f1")) for s in scores)],
        ["share of the commonest label", *(_share(s.get("majority")) for s in scores)],
        ["rows with a label", *(cell(s.get("labelled_rows")) for s in scores)],
    ]
    for name in dict.fromkeys(name for s in scores for name in _dict(s.get("measures"))):
        each = [_dict(_dict(s.get("measures")).get(name)) for s in scores]
        rows.append([f"{cell(name)}, of 100", *(_number(one.get("mean"), ".1f") for one in each)])
        rows.append([f"95 % interval of {cell(name)}", *(_interval(one.get("interval"), _tenths) for one in each)])
    ties = [_dict(s.get("near_ties")) for s in scores]
    rows.append(["near-ties of labels", *(cell(one.get("rows")) for one in ties)])
    rows.append(["within so many nats", *(_number(one.get("noise"), ".2g") for one in ties)])
    rows.append(["accuracy by how they end", *(_interval(one.get("accuracy_range"), _share) for one in ties)])
    return [row for row in rows if set(row[1:]) != {cell(None)}]


def _paired(id: str, name: str, adapters: dict[str, dict[str, Any]]) -> Table:
    """A row an adapter, against the base on the same rows."""
    head = ["against the base", "loss", "95 % interval", "rows better", "rows worse", "p (sign test)"]
    labelled = any("gained" in _dict(one.get("against_base")) for one in adapters.values())
    head += ["labels gained", "labels lost", "p (McNemar)"] if labelled else []
    rows = []
    for adapter, one in adapters.items():
        p = _dict(one.get("against_base"))
        rows.append([adapter, _number(p.get("loss_difference"), "+.4f"), _interval(p.get("loss_interval"), _signed)])
        rows[-1] += [cell(p.get("better")), cell(p.get("worse")), _number(p.get("loss_p"), ".2g")]
        rows[-1] += [cell(p.get("gained")), cell(p.get("lost"))] if labelled else []
        rows[-1] += [_number(p.get("accuracy_p"), ".2g")] if labelled else []
    note = "p: how likely chance alone splits the rows as unevenly"
    return Table(id, f"{name}: adapters against the base", head, rows, note)


def _paired_measures(id: str, name: str, adapters: dict[str, dict[str, Any]]) -> Table:
    """A row for each measure of written answers and adapter, against the base on the same rows."""
    head = ["against the base", "measure", "difference", "95 % interval", "rows better", "rows worse", "p"]
    rows = []
    for adapter, one in adapters.items():
        for measure, found in _dict(_dict(one.get("against_base")).get("measures")).items():
            m = _dict(found)
            rows.append([adapter, cell(measure), _number(m.get("difference"), "+.1f")])
            rows[-1] += [_interval(m.get("interval"), _tenths), cell(m.get("better")), cell(m.get("worse"))]
            rows[-1] += [_number(m.get("p"), ".2g")]
    return Table(id, f"{name}: written answers against the base's", head, rows)


def _judged(id: str, name: str, judged: dict[str, Any]) -> Table:
    """A row for each contest that a judge decided."""
    head = ["answers of", "against", "wins", "ties", "losses", "win rate", "95 % interval", "p", "first one preferred"]
    rows = []
    for one in (_dict(contest) for contest in _list(judged.get("contests"))):
        rows.append([_file(one.get("name")), _file(one.get("against"))])
        rows[-1] += [cell(one.get(key)) for key in ("wins", "ties", "losses")]
        rows[-1] += [_share(one.get("win_rate")), _interval(one.get("interval"), _share), _number(one.get("p"), ".2g")]
        rows[-1] += [_share(one.get("first_shown"))]
    note = "each row was judged in both orders; a preference for the answer shown first makes ties"
    return Table(id, f"{name}: judged by {_file(judged.get('judge'))}", head, rows, note)


def _confusion(id: str, title: str, score: dict[str, Any]) -> list[Table]:
    """A row a label, a column what was chosen for it."""
    rows = {cell(label): _dict(row) for label, row in _dict(score.get("confusion")).items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if not 0 < len(columns) <= _MOST_LABELS or len(rows) > _MOST_LABELS:
        return []
    head = ["label \\ chosen", *(cell(column or "none") for column in columns)]
    body = [[label, *(cell(row.get(column)) for column in columns)] for label, row in rows.items()]
    return [Table(id, f"{title}: labels and what was chosen for them", head, body, folded=True)]


def _labels(id: str, title: str, score: dict[str, Any]) -> list[Table]:
    counts = {cell(label): _dict(one) for label, one in _dict(score.get("labels")).items()}
    rows = [[label, *(cell(one.get(key)) for key in ("rows", "chosen", "right"))] for label, one in counts.items()]
    return [Table(id, f"{title}: each label", ["label", "rows", "chosen", "right"], rows[:_MOST_OTHERS], folded=True)]


def _others(prefix: str, values: dict[str, Any], known: set[str], depth: int = 0) -> Iterator[list[str]]:
    """What is not in a table of its own, nested objects by joined names."""
    for key, value in values.items():
        if key in known or value in ({}, []) or (key == "against_base" and _PAIRED.issuperset(_dict(value))):
            continue
        name = f"{prefix}{cell(key).replace('_', ' ')}"
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from _others(f"{name}: ", value, set(), depth + 1)
        elif isinstance(value, list) and depth < _DEEPEST and value and all(isinstance(one, dict) for one in value):
            for i, one in enumerate(value, 1):
                yield from _others(f"{name} {i}: ", one, set(), depth + 1)
        else:
            yield [name, cell(value)]


def _names(adapters: Sequence[dict[str, Any]]) -> list[str]:
    """Adapters by their file names, or by their paths where those are equal."""
    paths = [cell(adapter.get("name")) for adapter in adapters]
    names = [_file(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    return paths if len(set(paths)) == len(paths) else [f"{path} ({i})" for i, path in enumerate(paths, 1)]


def _file(value: object) -> str:
    """A path without its folders."""
    return cell(value).replace("\\", "/").rsplit("/", 1)[-1]


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: object, form: str = ".6g") -> str:
    real = _real(value)
    return cell(value) if real is None else format(real, form)


def _signed(value: object) -> str:
    return _number(value, "+.4f")


def _tenths(value: object) -> str:
    return _number(value, ".1f")


def _share(value: object) -> str:
    real = _real(value)
    return cell(value) if real is None else f"{100 * real:.1f} %"


def _real(value: object) -> float | None:
    """A number that a double holds."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e300 else None  # type: ignore[arg-type]


def _interval(value: object, shown: Any) -> str:
    ends = _list(value)
    return f"{shown(ends[0])} to {shown(ends[1])}" if len(ends) == 2 else cell(value)
