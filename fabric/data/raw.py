"""Raw rows as `prepare` finds them: JSON lines, a JSON array, tables with a header, plain text. A row that cannot be
read comes as the DataError that says why, so that the caller may stop or go on; an unreadable file raises it.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from fabric.data.jsonl import parse_line
from fabric.data.lines import MAX_LINE_BYTES, SNIFFED_BYTES, Lines
from fabric.errors import DataError, UsageError
from fabric.notices import remark

Row = tuple[str, Any]  # `file:line`, and a value (a dict, if the row is good) or a DataError
IsHeader = Callable[[Collection[str]], bool]

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
TABLES = {"csv": ",", "tsv": "\t"}  # and what usually stands between their cells
_CELL_CHARS = 16 << 20  # an unclosed quote swallows no more than this
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "text", ".text": "text", ".md": "text"}
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_BAD_CHARACTER = re.compile("[\0\udc80-\udcff]")  # a lone surrogate stands for a byte that is not UTF-8
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")  # Excel's own way of saying what separates cells
_LONE_RETURN = re.compile(r"(?<=\r)(?!\n)")


def format_of(lines: Lines, form: str, is_header: IsHeader, separator: str | None = None) -> str:
    """The format of an input, of `PrepareSettings.format`; "auto" is found out from its name, or its first line.

    is_header: whether rows with such fields are known, by which a table without a telling name is recognised. Raises
    UsageError when the format cannot be told.
    """
    return _told(lines, is_header, separator) if form == "auto" else form


def read_rows(lines: Lines, form: str, is_header: IsHeader, separator: str | None = None) -> Iterator[Row]:
    """Rows of an input in a format of `format_of`. separator: of a table's cells; None: found out from its header."""
    if form in TABLES:
        return _table(lines, form, is_header, separator)
    if lines.encoding == "UTF-16":
        remark(f"{lines.name}: read as UTF-16")
    return {"jsonl": _json_lines, "json": _json_array, "text": _document, "paragraphs": _paragraphs}[form](lines)


def _told(lines: Lines, is_header: IsHeader, separator: str | None) -> str:
    suffix = Path(lines.name).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    first = lines.peek().strip()
    if re.match(rb"\[\s*(\{|\]|$)", first):
        return "json"
    if suffix in _JSON_SUFFIXES or first.startswith(b"{") or not first:
        return "jsonl"
    line = first.decode("utf-8", "replace")
    if separator or _SEPARATOR_LINE.match(f"{line}\n") or is_header(_header(line, _separator(line, "\t", is_header))):
        return "csv"
    raise UsageError(
        f"the format of {lines.name} cannot be told from its name or its first line: "
        "name it (jsonl, json, csv, tsv, text or paragraphs)"
    )


def _separator(line: str, usual: str, is_header: IsHeader) -> str:
    """What separates the cells of a header: what gives known names, then what gives most, then what is usual."""
    names = {separator: _header(line, separator) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda it: (bool(names[it]) and is_header(names[it]), len(names[it]), it == usual))


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        return []


def _json_lines(lines: Lines) -> Iterator[Row]:
    while line := lines.line():
        if len(line) > MAX_LINE_BYTES:
            yield lines.where(), DataError(f"{lines.where()}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        elif not line.isspace():
            yield lines.where(), _parsed(line, lines.where())


def _parsed(line: bytes, where: str) -> Any:
    try:
        return parse_line(line, where)
    except DataError as error:
        return error


def _json_array(lines: Lines) -> Iterator[Row]:
    """Items one at a time; `where` names the line an item begins on. After bad JSON nothing can be read."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)  # only the ends of items are looked for
    text, at, number = "", 0, 1

    def more() -> bool:
        nonlocal text, at
        chunk, size = b"", max(SNIFFED_BYTES, len(text) - at)
        while len(chunk) < size and (part := lines.chunk(size)):
            chunk += part
        try:
            text, at = text[at:] + utf8.decode(chunk, not chunk), 0
        except UnicodeDecodeError:
            raise DataError(f"{lines.where(number)}: the text from here on is not valid UTF-8") from None
        return bool(chunk)

    def move(to: int) -> None:
        nonlocal at, number
        number += text.count("\n", at, to)
        at = to

    def skip_space() -> bool:
        """Move to what follows; False at the end of the input."""
        while True:
            space = _JSON_SPACE.match(text, at)
            move(space.end() if space else at)
            if at < len(text):
                return True
            if not more():
                return False

    def following(accepted: str) -> str:
        if not skip_space():
            raise DataError(f"{lines.where(number)}: the JSON array is cut short: it has no end")
        if accepted and text[at] not in accepted:
            raise DataError(f"{lines.where(number)}: {text[at]!r} where JSON has {' or '.join(accepted)}")
        return text[at]

    def item_end(where: str) -> int:
        while True:
            reason = "it is cut short"
            try:
                end = decoder.raw_decode(text, at)[1]
                if end < len(text):
                    return end
            except RecursionError:
                raise DataError(f"{where}: the row is nested too deeply") from None
            except ValueError as error:
                reason = str(error).split(": line ")[0]
            if len(text) - at > MAX_LINE_BYTES or not more():
                raise DataError(f"{where}: from here on the text is not JSON: {reason}")

    following("[")
    move(at + 1)
    mark = following("")
    while mark != "]":
        where = lines.where(number)
        end = item_end(where)
        yield where, _parsed(text[at:end].encode(), where)
        move(end)
        if (mark := following(",]")) == ",":
            move(at + 1)
            following("")
    move(at + 1)
    if skip_space():
        raise DataError(f"{lines.where(number)}: more text after the end of the JSON array")


def _table(lines: Lines, form: str, is_header: IsHeader, given: str | None) -> Iterator[Row]:
    """Cells are strings. `where` names the line a row begins on, for quoted cells may hold lines of their own."""
    first, usual = lines.peek().decode("utf-8", "replace"), TABLES[form]
    returns = bool(_LONE_RETURN.search(first.rstrip("\r")))  # as old spreadsheets end lines
    first = _LONE_RETURN.split(first)[0].rstrip("\r")
    said = _SEPARATOR_LINE.match(f"{first}\n")
    separator = given or (said[1] if said else _separator(first, usual, is_header))
    pieces = _decoded(lines, returns)
    before = bool(said and next(pieces))
    if not given and (separator != usual or lines.encoding != "UTF-8"):
        found = SEPARATORS.get(separator, repr(separator))
        remark(f"{lines.name}: read as {lines.encoding}, with {found} between cells; --separator names others")
    csv.field_size_limit(_CELL_CHARS)
    table = csv.reader(pieces, delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        where = lines.where((before + table.line_num if returns else lines.number) + 1)
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield where, DataError(f"{where}: the row is not {form.upper()}: {_explained(error)}")
            continue
        if cells is None:
            return
        problem = _cell_problem(cells)
        if header is None and cells:
            header = [name.strip() for name in cells]
            if problem or "" in header or len(set(header)) < len(header):
                problem = problem or "a name in the header is empty or doubled; correct the header"
                raise DataError(f"{where}: {problem}")
        elif header and cells:
            if len(cells) != len(header):
                problem = (
                    f"the row has {len(cells)} cells, the header {len(header)}; "
                    f"{SEPARATORS.get(separator, repr(separator))} separate them unless --separator says otherwise"
                )
            yield where, DataError(f"{where}: {problem}") if problem else dict(zip(header, cells, strict=True))


def _explained(error: csv.Error) -> str:
    """What the csv module found, in words of tables."""
    reasons = {
        "unexpected end of data": "a quoted cell has no end",
        "expected after": "a quote inside a quoted cell is not doubled",
        "larger than field limit": f"a cell is longer than {_CELL_CHARS >> 20} Mi characters",
        "new-line": "a carriage return stands outside quotes",
        "NUL": "a cell contains a NUL character",
    }
    return next((reason for told, reason in reasons.items() if told in str(error)), str(error))


def _cell_problem(cells: list[str]) -> str | None:
    bad = _BAD_CHARACTER.search("".join(cells))
    if bad is None:
        return None
    return (
        "a cell contains a NUL character" if bad[0] == "\0" else "the row is not valid UTF-8; save the table as UTF-8"
    )


def _decoded(lines: Lines, returns: bool) -> Iterator[str]:
    while line := lines.line():
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{lines.where()}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        text = line.decode("utf-8", "surrogateescape")
        yield from filter(None, _LONE_RETURN.split(text)) if returns else (text,)


def _document(lines: Lines) -> Iterator[Row]:
    parts, size = [], 0
    while line := lines.line():
        parts.append(line)
        size += len(line)
        if size > MAX_LINE_BYTES:
            raise DataError(f"{lines.name}: a text is longer than {MAX_LINE_BYTES >> 20} MiB; divide it at blank lines")
    yield from _texts([(1, b"".join(parts))], lines)


def _paragraphs(lines: Lines) -> Iterator[Row]:
    return _texts(_divided(lines), lines)


def _divided(lines: Lines) -> Iterator[tuple[int, bytes]]:
    parts: list[bytes] = []
    size = first = 0
    while True:
        line = lines.line()
        if line.strip():
            first = first if parts else lines.number
            parts.append(line)
            size += len(line)
            if size > MAX_LINE_BYTES:
                raise DataError(f"{lines.where(first)}: the paragraph is longer than {MAX_LINE_BYTES >> 20} MiB")
        elif parts:
            yield first, b"".join(parts)
            parts, size = [], 0
        if not line:
            return


def _texts(parts: Iterable[tuple[int, bytes]], lines: Lines) -> Iterator[Row]:
    for number, part in parts:
        where = lines.where(number)
        try:
            text = part.decode("utf-8").strip("\r\n")
        except UnicodeDecodeError:
            yield where, DataError(f"{where}: the text is not valid UTF-8")
            continue
        if text:
            yield where, DataError(f"{where}: the text contains a NUL character") if "\0" in text else {"text": text}
