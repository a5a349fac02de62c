"""The lines of an input as UTF-8, whichever of UTF-8 and UTF-16 it is in, with or without a byte-order mark."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fabric.errors import DataError, OutputError
from fabric.files import read_input
from fabric.kinds import instead_of_rows

MAX_LINE_BYTES = 64 << 20
SNIFFED_BYTES = 1 << 16


@contextmanager
def open_rows(path: str) -> Iterator[BinaryIO]:
    """An input of rows. DataError where it is known to hold something else; MissingInputError."""
    if wrong := instead_of_rows(path):
        raise DataError(wrong)
    with read_input(path) as handle:
        yield handle


class Lines:
    """Lines as UTF-8 without a byte-order mark. `number` counts them; `encoding` is what the input is in."""

    def __init__(self, handle: BinaryIO, name: str) -> None:
        self.name, self.number, self.encoding = name, 0, "UTF-8"
        self._source: _Utf8 | _Utf16 = _Utf8(handle)
        self._ahead = self._read(4)
        if self._ahead.startswith(codecs.BOM_UTF8):
            self._ahead, self.encoding = self._ahead[3:], "UTF-8 with a byte-order mark"
        elif codec := _utf16(self._ahead):
            self._source, self.encoding = _Utf16(handle, codec, self._ahead), "UTF-16"
            self._ahead = b""

    @property
    def bytes_read(self) -> int:
        """Of the input, as it is."""
        return self._source.bytes_read

    def peek(self) -> bytes:
        """The first line that is not blank, if it begins within the first 64 KiB; nothing is consumed."""
        while not self._ahead.strip() and len(self._ahead) < SNIFFED_BYTES:
            line = self._read(SNIFFED_BYTES)
            self._ahead += line
            if not line:
                return b""
        if not self._ahead.endswith(b"\n"):
            self._ahead += self._read(SNIFFED_BYTES)
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
            return self._source.readline(size)
        except OSError as error:
            raise OutputError(f"{self.name} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise DataError(f"{self.where(self.number + 1)}: from about here on the text is not valid UTF-16") from None


def _utf16(first: bytes) -> str | None:
    """The codec of an input that begins so; without a mark, by the zero byte beside its first letter."""
    for codec, mark in (("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE)):
        if first.startswith(mark):
            return codec
    if first[:2].count(0) == 1 and len(first) > 1:
        return "utf-16-le" if first[1] == 0 else "utf-16-be"
    return None


class _Utf8:
    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.bytes_read = handle, 0

    def readline(self, size: int) -> bytes:
        line = self.handle.readline(size)
        self.bytes_read += len(line)
        return line


class _Utf16:
    """Recoded in pieces that grow with the line, so that a long line costs no more than its length."""

    def __init__(self, handle: BinaryIO, codec: str, first: bytes) -> None:
        self.handle, self.bytes_read = handle, len(first)
        self.decoder = codecs.getincrementaldecoder(codec)()
        self.ready = self.decoder.decode(first).removeprefix("\ufeff").encode()
        self.ended = False

    def readline(self, size: int) -> bytes:
        end = self.ready.find(b"\n") + 1
        while not end and len(self.ready) < size and not self.ended:
            seen, piece = len(self.ready), self.handle.read(max(SNIFFED_BYTES, len(self.ready)))
            self.bytes_read, self.ended = self.bytes_read + len(piece), not piece
            self.ready += self.decoder.decode(piece, self.ended).encode()
            end = self.ready.find(b"\n", seen) + 1
        end = min(end or len(self.ready), size)
        line, self.ready = self.ready[:end], self.ready[end:]
        return line
