"""What `fabric prepare` does: raw rows in, training records out. Rows stream through one at a time; only where a
shuffle, a split or a balance needs all of them do they wait in a temporary file, with an index in memory.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fabric.data.index import Index, Rows, each, split
from fabric.data.jsonl import check_line, dumps
from fabric.data.lines import Lines, open_rows
from fabric.data.raw import TABLES, Row, format_of, read_rows
from fabric.data.records import Unused
from fabric.data.settings import PrepareSettings
from fabric.data.shapes import check_template, contents, known_fields, to_record
from fabric.errors import DataError, OutputError, UsageError
from fabric.files import check_streams, is_stream, open_output, shown
from fabric.notices import notice

_NAMED_BAD_ROWS = 20

# Called with (bytes read, bytes in all or 0 where that is unknown), from the calling thread.
Progress = Callable[[int, int], None]


@dataclass
class PrepareReport:
    """Where the rows went: `read` is the sum of the other counts."""

    read: int = 0
    written: int = 0
    held_out: dict[str, int] = field(default_factory=dict)
    """Path: rows."""
    bad: int = 0
    duplicates: int = 0
    too_short: int = 0
    too_long: int = 0
    unbalanced: int = 0
    """Left out by `balance`."""
    unused: dict[str, int] = field(default_factory=dict)
    """Rows by fields without an effect, none where `keep` names those to keep."""
    bad_rows: list[str] = field(default_factory=list)
    """Why rows were bad, as `file:line: reason`; the first 20."""


class _Prepared(NamedTuple):
    """A row that passed: its record as a JSON line, a hash of its contents, and its values of the fields asked for."""

    line: bytes
    digest: bytes
    balance: bytes
    stratum: bytes


def prepare(settings: PrepareSettings, out: BinaryIO, progress: Progress | None = None) -> PrepareReport:
    """Write rows of all shapes as records, JSON lines, to `out`, and held-out ones to their files.

    A choice by the seed depends on a row's contents alone, so copies of a row stay on one side of a split. Raises
    UsageError, MissingInputError, OutputError, and DataError for a bad row (`file:line`) or when no row is left.
    """
    _check(settings)
    report = PrepareReport()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_output(part.path, text=True)) for part in settings.hold_out]
        rows = _passed(settings, report, progress)
        if settings.shuffle or settings.balance is not None or files:
            with _spooled(rows) as (spool, index):
                left = index.all() if settings.balance is None else _balanced(index, settings, report)
                held_out = [(held.path, held.fraction) for held in settings.hold_out]
                parts = split(index, left, held_out, settings.seed)
                parts = [index.shuffled(part, settings.seed) for part in parts] if settings.shuffle else parts
                report.written = len(parts[0])
                report.held_out = {
                    held.path: len(part) for held, part in zip(settings.hold_out, parts[1:], strict=True)
                }
                for part, file in zip(parts, (out, *files), strict=True):
                    _copy(spool, index, part, file)
        else:
            for row in rows:
                out.write(row.line)
                report.written += 1
        if not report.written:
            raise DataError(_nothing_left(report, settings))
        out.flush()
    return report


def _check(settings: PrepareSettings) -> None:
    paths = [part.path for part in settings.hold_out]
    check_streams(settings.inputs, paths)
    if not all(0 < part.fraction < 1 for part in settings.hold_out) or sum(p.fraction for p in settings.hold_out) >= 1:
        raise UsageError("fractions to hold out must each be above 0, and together below 1")
    if settings.prompt_template is not None:
        check_template(settings.prompt_template)
    if settings.stratify is not None and not paths:
        raise UsageError(f"stratifying by {settings.stratify!r} divides nothing: say what to hold out")
    if settings.separator is not None and settings.format not in ("auto", "csv", "tsv"):
        raise UsageError(f"--separator is for tables, and --format {settings.format} has no cells: leave one out")
    if settings.separator is not None and (len(settings.separator) != 1 or settings.separator in '"\r\n'):
        raise UsageError(f"--separator {settings.separator!r} is not one character that can stand between cells")
    if settings.max_chars is not None and settings.max_chars < settings.min_chars:
        raise UsageError(f"no row has at least {settings.min_chars} and at most {settings.max_chars} characters")
    for path in settings.inputs:
        if not is_stream(path):  # opening a pipe would take it from its one reader
            with open_rows(path):
                pass


def _passed(settings: PrepareSettings, report: PrepareReport, progress: Progress | None) -> Iterator[_Prepared]:
    """Rows that become records and pass the filters; the others are counted."""
    seen: set[bytes] = set()
    unused = Unused()
    for where, row in _raw(settings, progress):
        report.read += 1
        try:
            prepared, chars, others = _prepared(row, where, settings)
        except DataError as error:
            if settings.on_error == "stop":
                raise
            report.bad += 1
            report.bad_rows += [str(error)] if len(report.bad_rows) < _NAMED_BAD_ROWS else []
            continue
        unused.count(others)
        if chars < settings.min_chars:
            report.too_short += 1
        elif settings.max_chars is not None and chars > settings.max_chars:
            report.too_long += 1
        elif settings.drop_duplicates and prepared.digest in seen:
            report.duplicates += 1
        else:
            if settings.drop_duplicates:
                seen.add(prepared.digest)
            yield prepared
    report.unused = dict(unused.names)
    unused.tell(", ".join(map(shown, settings.inputs)), "; --keep-fields says which pass through")


def _raw(settings: PrepareSettings, progress: Progress | None) -> Iterator[Row]:
    whole = not any(map(is_stream, settings.inputs))
    total = sum(Path(path).stat().st_size for path in settings.inputs) if whole else 0
    done = told = 0
    tables = False

    def known(names: Collection[str]) -> bool:
        return known_fields(names, settings.fields)

    for path in settings.inputs:
        with open_rows(path) as handle:
            lines = Lines(handle, shown(path))
            form = format_of(lines, settings.format, known, settings.separator)
            tables = tables or form in TABLES
            for row in read_rows(lines, form, known, settings.separator):
                if progress and done + lines.bytes_read - told >= 1 << 18:
                    told = done + lines.bytes_read
                    progress(told, total)
                yield row
            done += lines.bytes_read
    if progress:
        progress(done, total)
    if settings.separator is not None and not tables:
        notice("--separator has no effect, as no input is a table")


def _prepared(row: Any, where: str, settings: PrepareSettings) -> tuple[_Prepared, int, list[str]]:
    """A row as it is written, how many characters its contents have, and which of its fields have no effect."""
    if isinstance(row, DataError):
        raise row
    record, fields, unused = to_record(row, where, settings)
    try:
        line, digest = dumps(record.data) + b"\n", record.digest if settings.compares else b""
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: the row cannot be written as JSON: {error}") from None
    check_line(line, record.data, where)
    values = (_value(fields, name, where) for name in (settings.balance, settings.stratify))
    return _Prepared(line, digest, *values), sum(map(len, contents(record.data))), unused


def _value(fields: Mapping[str, Any], name: str | None, where: str) -> bytes:
    if name is None:
        return b""
    value = fields.get(name)
    if not isinstance(value, (str, int, float)):
        raise DataError(f"{where}: rows are divided by {name!r}, but this one has no text, number or truth value there")
    return dumps(value)


@contextlib.contextmanager
def _spooled(rows: Iterable[_Prepared]) -> Iterator[tuple[BinaryIO, Index]]:
    """Rows in an unlinked temporary file, and their index."""
    index = Index()
    with tempfile.TemporaryFile() as spool:
        try:
            for line, digest, balance, stratum in rows:
                spool.write(line)
                index.append(len(line), digest, balance, stratum)
            spool.flush()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"keeping the rows in {tempfile.gettempdir()} failed: {reason}") from error
        yield spool, index


def _copy(spool: BinaryIO, index: Index, rows: Rows, out: BinaryIO) -> None:
    for row in each(rows):
        first, size = index.place(row)
        spool.seek(first)
        out.write(spool.read(size))
    out.flush()


def _balanced(index: Index, settings: PrepareSettings, report: PrepareReport) -> Rows:
    groups = [group for _, group in index.balance.groups(index.ranked(index.all(), settings.seed, "balance"))]
    fewest = min(map(len, groups), default=0)
    report.unbalanced = sum(map(len, groups)) - fewest * len(groups)
    return np.sort(np.concatenate([group[:fewest] for group in groups] or [index.all()]))


def _nothing_left(report: PrepareReport, settings: PrepareSettings) -> str:
    names = ", ".join(shown(path) for path in settings.inputs)
    if not report.read:
        return f"{names}: there are no rows"
    counts = {
        "bad": report.bad, "too short": report.too_short, "too long": report.too_long,
        "duplicates": report.duplicates, "unbalanced": report.unbalanced, "held out": sum(report.held_out.values()),
    }  # fmt: skip
    why = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    first = f"; the first bad one is {report.bad_rows[0]}" if report.bad_rows else ""
    return f"{names}: none of the {report.read} rows is left ({why}){first}"
