"""Raw rows as `prepare` finds them: JSON lines, a JSON array, CSV and TSV with a header, plain text. A row that cannot
be read comes as the DataError that says why, so that the caller may stop or go on; an unreadable file raises it.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fabric.data.jsonl import MAX_LINE_BYTES, parse_line
from fabric.errors import DataError, OutputError, UsageError

Row = tuple[str, Any]  # `file:line`, and a value (a dict, if the row is good) or a DataError

_CELL_CHARS = 16 << 20  # an unclosed quote swallows no more than this
_SNIFFED_BYTES = 1 << 16
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "text", ".text": "text", ".md": "text"}
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_BAD_CHARACTER = re.compile("[\0\udc80-\udcff]")  # a lone surrogate stands for a byte that is not UTF-8
_JSON_SPACE = re.compile(r"[ \t\r\n]*")


class Lines:
    """The lines of an input, as bytes without a byte-order mark. `number` counts them, `bytes_read` their bytes."""

    def __init__(self, handle: BinaryIO, name: str) -> None:
        self.handle, self.name = handle, name
        self.number = self.bytes_read = 0
        self._ahead = self._read(3)
        if self._ahead == codecs.BOM_UTF8:
            self._ahead = b""

    def peek(self) -> bytes:
        """The first line that is not blank, if it begins within the first 64 KiB; nothing is consumed."""
        while not self._ahead.strip() and len(self._ahead) < _SNIFFED_BYTES:
            line = self._read(_SNIFFED_BYTES)
            self._ahead += line
            if not line:
                return b""
        if not self._ahead.endswith(b"\n"):
            self._ahead += self._read(_SNIFFED_BYTES)
        return self._ahead.lstrip().partition(b"\n")[0]

    def line(self) -> bytes:
        """The next line with its end, b"" after the last; of one that is too long the first MAX_LINE_BYTES + 1."""
        ahead, end, self._ahead = self._ahead.partition(b"\n")
        line = ahead + end
        if not end:
            line += self._read(MAX_LINE_BYTES + 1 - len(line))
        rest = line
        while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
            rest = self._read(MAX_LINE_BYTES)
        self.number += bool(line)
        return line

    def chunk(self, size: int) -> bytes:
        """The next bytes, up to the end of a line or `size` of them; b"" at the end."""
        ahead, self._ahead = self._ahead, b""
        return ahead or self._read(size)

    def where(self, number: int = 0) -> str:
        """A line by its number, else the one just read."""
        return f"{self.name}:{number or self.number}"

    def _read(self, size: int) -> bytes:
        try:
            line = self.handle.readline(size)
        except OSError as error:
            raise OutputError(f"{self.name} cannot be read: {error.strerror or error}") from None
        self.bytes_read += len(line)
        return line


def read_rows(lines: Lines, form: str, is_header: Callable[[Collection[str]], bool]) -> Iterator[Row]:
    """Rows of an input in a format of `PrepareSettings.format`. is_header: whether rows with such fields are known,
    by which a table without a telling name is recognised. Raises UsageError when the format cannot be told."""
    form = _told(lines, is_header) if form == "auto" else form
    if form in ("csv", "tsv"):
        return _table(lines, "," if form == "csv" else "\t")
    return {"jsonl": _json_lines, "json": _json_array, "text": _document, "paragraphs": _paragraphs}[form](lines)


def _told(lines: Lines, is_header: Callable[[Collection[str]], bool]) -> str:
    suffix = Path(lines.name).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    first = lines.peek().strip()
    if re.match(rb"\[\s*(\{|\]|$)", first):
        return "json"
    if suffix in _JSON_SUFFIXES or first.startswith(b"{") or not first:
        return "jsonl"
    for form, delimiter in (("tsv", "\t"), ("csv", ",")):
        if is_header(_header(first.decode("utf-8", "replace"), delimiter)):
            return form
    raise UsageError(
        f"the format of {lines.name} cannot be told from its name or its first line: "
        "name it (jsonl, json, csv, tsv, text or paragraphs)"
    )


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
    decoder = json.JSONDecoder()
    text, at, number = "", 0, 1

    def more() -> bool:
        nonlocal text, at
        chunk, size = b"", max(_SNIFFED_BYTES, len(text) - at)
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


def _table(lines: Lines, delimiter: str) -> Iterator[Row]:
    """Cells are strings. `where` names the line a row begins on, for quoted cells may hold lines of their own."""
    csv.field_size_limit(_CELL_CHARS)
    table = csv.reader(_decoded(lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = lines.where(lines.number + 1)
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield where, DataError(f"{where}: the row is not {'CSV' if delimiter == ',' else 'TSV'}: {error}")
            continue
        if cells is None:
            return
        problem = _cell_problem(cells)
        if header is None and cells:
            header = [name.strip() for name in cells]
            if problem or "" in header or len(set(header)) < len(header):
                problem = problem or "a name in the header is empty or doubled"
                raise DataError(f"{where}: {problem}; correct the header")
        elif header and cells:
            if len(cells) != len(header):
                problem = f"the row has {len(cells)} cells, the header {len(header)}"
            yield where, DataError(f"{where}: {problem}") if problem else dict(zip(header, cells, strict=True))


def _cell_problem(cells: list[str]) -> str | None:
    bad = _BAD_CHARACTER.search("".join(cells))
    if bad is None:
        return None
    return "a cell contains a NUL character" if bad[0] == "\0" else "the row is not valid UTF-8"


def _decoded(lines: Lines) -> Iterator[str]:
    while line := lines.line():
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{lines.where()}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        yield line.decode("utf-8", "surrogateescape")


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
