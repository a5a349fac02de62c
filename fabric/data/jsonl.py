"""JSON lines in and out: orjson where it is installed, the standard module otherwise, with the same strictness.

Every line is UTF-8, at most `MAX_LINE_BYTES` long, and holds one value without NUL characters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

from fabric.errors import DataError, OutputError

MAX_LINE_BYTES = 64 << 20
MAX_DEPTH = 100  # of lists and objects inside each other


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def standard_loads(line: bytes) -> Any:
    """The standard module, as strict as orjson: no NaN, no half surrogate pairs."""
    value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    if b"\\u" in line:  # an escaped half of a surrogate pair is no character
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def standard_dumps(value: Any) -> bytes:
    """The standard module, as compact as orjson."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


loads: Callable[[bytes], Any] = standard_loads
dumps: Callable[[Any], bytes] = standard_dumps
try:
    import orjson
except ImportError:
    pass
else:
    loads, dumps = orjson.loads, orjson.dumps


def read_json_lines(lines: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line that is not blank; where is `name:line`. DataError on the first bad line."""
    number = 0
    while True:
        try:
            line = lines.readline(MAX_LINE_BYTES + 1)
        except OSError as error:
            raise OutputError(f"{name} cannot be read: {error.strerror or error}") from None
        if not line:
            return
        number += 1
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{where}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; one JSON object a line is read"
            )
        if number == 1 and line.startswith(b"\xef\xbb\xbf"):
            line = line[3:]
        if line.isspace() or not line:
            continue
        yield where, parse_line(line, where)


def parse_line(line: bytes, where: str) -> Any:
    """The value of one line; DataError where it is not JSON, not UTF-8 or contains NUL."""
    try:
        line.decode("utf-8")
        value = loads(line.strip())
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise RecursionError
        nul = b"\\u0000" in line and _has_nul(value)
    except UnicodeError:
        raise DataError(f"{where}: the line is not valid UTF-8") from None
    except RecursionError:
        raise DataError(f"{where}: the line is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where}: the line is not JSON: {str(error).split(': line ')[0]}") from None
    if nul:
        raise DataError(f"{where}: a string contains a NUL character; remove it")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))
