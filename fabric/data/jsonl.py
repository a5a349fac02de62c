"""JSON lines in and out. Every line is UTF-8, at most `MAX_LINE_BYTES` long, and holds one value: no NUL characters, no
halves of surrogate pairs, no key twice in an object, and no number larger than a double can be.

A number keeps its spelling: what comes in as 1.50, 1e2 or with thirty digits goes out so. The standard module alone
allows that, so there is no second, quicker reader beside it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, ClassVar, NoReturn

from fabric.data.lines import MAX_LINE_BYTES, Lines
from fabric.errors import DataError

MAX_DEPTH = 100  # of lists and objects inside each other
_BAD_CHARACTER = re.compile("[\0\ud800-\udfff]")
_MINUS_ZERO = re.compile(r"-0\s*[,\]}]")
_MARK = re.compile('"\ud800(\\d+)"')


class Number(float):
    """A number that Python would spell otherwise than its row does."""

    spelling: str
    met: ClassVar[bool] = False  # whether there was ever one, without which nothing has to look for them

    def __new__(cls, spelling: str) -> Number:
        """The number that is spelled so in JSON."""
        cls.met = True
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number


def spelled(value: bool | int | float) -> str:
    """A number or truth value as JSON spells it, and as its row did."""
    return value.spelling if isinstance(value, Number) else json.dumps(value)


def _float(spelling: str) -> float:
    value = float(spelling)
    if math.isinf(value):
        raise ValueError(f"the number {spelling:.40} is larger than any that a double holds")
    return value if repr(value) == spelling else Number(spelling)


def _int(spelling: str) -> float:
    return Number(spelling) if spelling == "-0" else int(spelling)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        for name, _ in reversed(pairs):
            if value.pop(name, pairs) is pairs:
                raise ValueError(f"the key {name!r:.80} stands twice in one object")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"the line is not JSON: {name} is no number there")


_hooks: dict[str, Any] = {"object_pairs_hook": _object, "parse_float": _float, "parse_constant": _constant}
_decode = json.JSONDecoder(**_hooks).decode
_decode_minus_zero = json.JSONDecoder(**_hooks, parse_int=_int).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: Any) -> bytes:
    """One line of JSON without its end. Numbers are spelled as they came. Raises ValueError for NaN, infinities and
    halves of surrogate pairs."""
    spellings: list[str] = []
    text = _encode(_marked(value, spellings) if Number.met else value)
    if spellings:  # no other string holds half of a pair, or it could not be encoded
        text = _MARK.sub(lambda mark: spellings[int(mark[1])], text)
    return text.encode("utf-8")


def _marked(value: Any, spellings: list[str]) -> Any:
    """The value with marks in place of numbers that keep their spelling."""
    if isinstance(value, Number):
        spellings.append(value.spelling)
        return f"\ud800{len(spellings) - 1}"
    if isinstance(value, dict):
        marked = {key: _marked(item, spellings) for key, item in value.items() if isinstance(item, _HOLDERS)}
        return {**value, **marked} if marked else value
    if isinstance(value, list) and any(isinstance(item, _HOLDERS) for item in value):
        return [_marked(item, spellings) for item in value]
    return value


_HOLDERS = (Number, dict, list)


def read_json_lines(
    handle: BinaryIO, name: str, bad: Callable[[DataError], None] | None = None, no_json: str = ""
) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line that is not blank; where is `name:line`. Raises DataError on the first bad line, or
    calls `bad` with it and goes on. `no_json` is added to what is said of a first line that does not begin like JSON.
    """
    lines = Lines(handle, name)
    while line := lines.line():
        if line.isspace():
            continue
        try:
            value = parse_line(line, lines.where())
        except DataError as error:
            if bad is None and no_json and lines.number == 1 and line.lstrip()[:1] not in b"{[":
                raise DataError(f"{error}{no_json}") from None
            if bad is None:
                raise
            bad(error)
            continue
        yield lines.where(), value


def parse_line(line: bytes, where: str) -> Any:
    """The value of one line; DataError where it is not JSON as `fabric` writes it."""
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"{where}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; one JSON object a line is read")
    try:
        text = line.decode("utf-8")
        value = (_decode_minus_zero if _MINUS_ZERO.search(text) else _decode)(text.strip(" \t\r\n"))
        if _is_deep(line, value):
            raise RecursionError
        bad = _bad_character(value) if "\\u" in text else None
    except UnicodeDecodeError:
        raise DataError(f"{where}: the line is not valid UTF-8") from None
    except RecursionError:
        raise DataError(f"{where}: the line is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: the line is not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:
        digits = "integer string conversion" in str(error)
        raise DataError(f"{where}: {'a number has too many digits' if digits else error}") from None
    if bad == "\0":
        raise DataError(f"{where}: a string contains a NUL character; remove it")
    if bad:
        raise DataError(f"{where}: a string contains \\u{ord(bad):04x}, half of a surrogate pair and no character")
    return value


def check_line(line: bytes, value: Any, where: str) -> None:
    """DataError where a line that was made of a value is longer or deeper than a line may be that is read."""
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"{where}: the record is longer than {MAX_LINE_BYTES >> 20} MiB; divide it")
    if _is_deep(line, value):
        raise DataError(f"{where}: the record is nested too deeply")


def _is_deep(line: bytes, value: Any) -> bool:
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return False
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
    return depth > MAX_DEPTH


def _bad_character(value: Any) -> str | None:
    """The first character in a value's strings that may not be there."""
    if isinstance(value, str):
        found = _BAD_CHARACTER.search(value)
        return found[0] if found else None
    if isinstance(value, dict):
        return next(filter(None, (_bad_character(item) for pair in value.items() for item in pair)), None)
    return next(filter(None, map(_bad_character, value)), None) if isinstance(value, list) else None
