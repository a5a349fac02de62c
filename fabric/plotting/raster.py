"""A small drawing board: antialiased lines, dots and stroke-font text on an RGB picture, and a PNG writer over zlib.

Coordinates are pixels, y downwards. Leans on numpy alone.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Color = tuple[int, int, int]
Point = tuple[float, float]
Points = Sequence[Point]
Segment = tuple[Point, Point]


class Picture:
    """An RGB picture, white at first."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels: npt.NDArray[np.float32] = np.full((height, width, 3), 255.0, np.float32)

    def polyline(self, points: Points, color: Color, width: float = 2.0, alpha: float = 1.0) -> None:
        """Joins points with a round pen; where a line crosses itself it gets no darker."""
        self._draw(list(itertools.pairwise(points)), width, color, alpha)

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        """A filled disc."""
        self.polyline([(x, y), (x, y)], color, 2 * radius)

    def rectangle(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """A filled box."""
        self.pixels[round(y) : round(y + height), round(x) : round(x + width)] = color

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        color: Color = (40, 40, 40),
        anchor: float = 0.0,
        up: bool = False,
    ) -> None:
        """Writes on the baseline y; size is the height of capitals; anchor 0, 0.5, 1: x is its start, middle, end.

        up: the text runs upwards, and x, y trade roles.
        """
        unit = size / 12
        at = -anchor * text_width(text, size)
        pen = max(1.1, size * 0.12)
        segments = []
        for char in text:
            strokes, advance = glyph(char)
            for stroke in strokes:
                placed = [(at + px * unit, -py * unit) for px, py in stroke]
                placed = [(x + py, y - px) if up else (x + px, y + py) for px, py in placed]
                segments += list(itertools.pairwise(placed))
            at += advance * unit
        self._draw(segments, pen, color, 1.0)

    def _draw(self, segments: Sequence[Segment], width: float, color: Color, alpha: float) -> None:
        """Segments in one colour, blended at once into the part of the picture that they lie in."""
        xs, ys = ([point[axis] for segment in segments for point in segment] for axis in (0, 1))
        reach, (rows, cols) = int(width / 2) + 2, self.pixels.shape[:2]
        left, right = max(0, int(min(xs, default=0)) - reach), min(cols, int(max(xs, default=0)) + reach + 1)
        top, bottom = max(0, int(min(ys, default=0)) - reach), min(rows, int(max(ys, default=0)) + reach + 1)
        if left >= right or top >= bottom:
            return
        ink = np.zeros((bottom - top, right - left), np.float32)
        for (x0, y0), (x1, y1) in segments:
            _stroke(ink, (x0 - left, y0 - top), (x1 - left, y1 - top), width)
        pixels = self.pixels[top:bottom, left:right]
        pixels += (ink * alpha)[..., None] * (np.array(color, np.float32) - pixels)

    def png(self) -> bytes:
        """The picture as a PNG file."""
        height, width = self.pixels.shape[:2]
        rows = np.zeros((height, 1 + 3 * width), np.uint8)
        rows[:, 1:] = (self.pixels + 0.5).clip(0, 255).astype(np.uint8).reshape(height, -1)

        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + data


def text_width(text: str, size: float) -> float:
    """Pixels that a text takes, the gap after its last letter left out."""
    return (sum(glyph(char)[1] for char in text) - _GAP) * size / 12 if text else 0.0


def _stroke(ink: npt.NDArray[np.float32], start: Point, end: Point, width: float) -> None:
    """Raises `ink` to the coverage of one round-ended segment."""
    (x0, y0), (x1, y1) = start, end
    reach = width / 2 + 1
    left, right = max(0, int(min(x0, x1) - reach)), min(ink.shape[1], int(max(x0, x1) + reach) + 2)
    top, bottom = max(0, int(min(y0, y1) - reach)), min(ink.shape[0], int(max(y0, y1) + reach) + 2)
    if left >= right or top >= bottom:
        return
    xs = np.arange(left, right, dtype=np.float32)[None, :] - x0
    ys = np.arange(top, bottom, dtype=np.float32)[:, None] - y0
    dx, dy = x1 - x0, y1 - y0
    length = dx * dx + dy * dy
    along = ((xs * dx + ys * dy) / length).clip(0, 1) if length else np.float32(0)
    distance = np.hypot(xs - along * dx, ys - along * dy)
    patch = ink[top:bottom, left:right]
    np.maximum(patch, (width / 2 + 0.5 - distance).clip(0, 1), out=patch)


# A glyph is strokes of points `xy`: x a digit, y a letter from a = -4 over e = 0 (baseline), m = 8 (height of x) to
# q = 12 (height of capitals). `-` joins them straight, `~` rounds the corners, `o` rounds and closes.
_GAP = 3.4
_BOWL = "o2m4m6k6g4e2e0g0k "
_GLYPHS = {
    "0": "o2q5q7n7h5e2e0h0n",
    "1": "-1n4q4e -1e7e",
    "2": "~0n1q6q7n6k0e -0e7e",
    "3": "~0p2q6q7l3k ~3k6l7h6e2e0f",
    "4": "-5e5q0i7i",
    "5": "-6q1q0k ~0k2m6m7i6e2e0f",
    "6": "o2l5l7j7g5e2e0g0j ~6q3p0m0h",
    "7": "-0q7q2e",
    "8": "o2q5q6p6m5l2l1m1p o2l5l7j7g5e2e0g0j",
    "9": "o2q5q7o7l5j2j0l0o ~7n7i4f1e",
    "a": _BOWL + "-6m6e",
    "b": _BOWL + "-0q0e",
    "c": "~6l4m2m0k0g2e4e6f",
    "d": _BOWL + "-6q6e",
    "e": "-0i6i ~6i6k4m2m0k0g2e4e6f",
    "f": "~5q4q2q2n2k -2k2e -0m5m",
    "g": _BOWL + "-6m6e ~6e6c4a2a0b",
    "h": "-0q0e ~0j2m4m6l6i -6i6e",
    "i": "-1m1e -1p1q",
    "j": "-2m2e ~2e2b1a0a -2p2q",
    "k": "-0q0e -5m0h -2j6e",
    "l": "-1q1e",
    "m": "-0m0e ~0k1m4m4j -4j4e ~4k5m8m8j -8j8e",
    "n": "-0m0e ~0j2m4m6l6i -6i6e",
    "o": _BOWL,
    "p": _BOWL + "-0m0a",
    "q": _BOWL + "-6m6a",
    "r": "-0m0e ~0j1m4m",
    "s": "~5l4m1m0k1i4i6g5e2e0f",
    "t": "-2p2h ~2h2e3e5e -0m5m",
    "u": "-0m0h ~0h0f2e4e6h -6m6e",
    "v": "-0m3e6m",
    "w": "-0m2e4l6e8m",
    "x": "-0m6e -6m0e",
    "y": "-0m3e -6m1a",
    "z": "-0m6m0e6e",
    "A": "-0e4q8e -1i7i",
    "B": "-0e0q ~0q5q7o6k4k -4k0k ~4k7k8h6e4e -4e0e",
    "C": "~8n6q3q0n0h3e6e8h",
    "D": "-0e0q ~0q4q8p8f4e0e",
    "E": "-7q0q0e7e -0k6k",
    "F": "-7q0q0e -0k6k",
    "G": "~8n6q3q0n0h3e6e8g -8g8k5k",
    "H": "-0q0e -8q8e -0k8k",
    "I": "-1q1e",
    "J": "-5q5h ~5h5e2e0e0h",
    "K": "-0q0e -7q0i -3l8e",
    "L": "-0q0e6e",
    "M": "-0e0q4h8q8e",
    "N": "-0e0q7e7q",
    "O": "o3q6q8o8g6e3e0g0o",
    "P": "-0e0q ~0q6q8o6j4j -4j0j",
    "Q": "o3q6q8o8g6e3e0g0o -5h8d",
    "R": "-0e0q ~0q6q8o6j4j -4j0j -4j8e",
    "S": "~7o5q2q0n2k5k7h5e2e0g",
    "T": "-0q8q -4q4e",
    "U": "-0q0i ~0i0e4e8e8i -8i8q",
    "V": "-0q4e8q",
    "W": "-0q2e4o6e8q",
    "X": "-0q8e -8q0e",
    "Y": "-0q4k8q -4k4e",
    "Z": "-0q8q0e8e",
    ".": "-1e1e",
    ",": "-1e0b",
    ":": "-1e1e -1l1l",
    "-": "-0j5j",
    "_": "-0c7c",
    "+": "-0j6j -3m3g",
    "=": "-0k6k -0h6h",
    "/": "-0c6q",
    "(": "~3r0n0f3b",
    ")": "~0r3n3f0b",
    "[": "-3r0r0b3b",
    "]": "-0r3r3b0b",
    "%": "o1q2q3p3n2m1m0n0p -7q0e o5i6i7h7f6e5e4f4h",
    "'": "-1q1n",
    "*": "-0l6h -6l0h -3m3g",
    "?": "~0n1q6q6l3k3h -3e3e",
    "!": "-1q1h -1e1e",
    "×": "-0l5g -5l0g",
    " ": "",
}


@cache
def glyph(char: str) -> tuple[list[list[tuple[float, float]]], float]:
    """Strokes of a letter, baseline at 0 and capitals 12 high, y upwards; and how far the next one stands."""
    source = _GLYPHS.get(char, "-0e0q6q6e0e").split()
    strokes = []
    for stroke in source:
        points = [(float(stroke[i]), float(ord(stroke[i + 1]) - ord("e"))) for i in range(1, len(stroke), 2)]
        strokes.append(points if stroke[0] == "-" else _round(points, stroke[0] == "o"))
    width = max((x for stroke in strokes for x, _ in stroke), default=2.0)
    return strokes, max(width, 1.0) + _GAP


def _round(points: list[tuple[float, float]], closed: bool) -> list[tuple[float, float]]:
    """Cuts corners three times (Chaikin, 1974)."""
    if closed:
        points = [*points, points[0]]
    for _ in range(3):
        cut = [] if closed else [points[0]]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            cut += [(0.75 * x0 + 0.25 * x1, 0.75 * y0 + 0.25 * y1), (0.25 * x0 + 0.75 * x1, 0.25 * y0 + 0.75 * y1)]
        points = [*cut, cut[0]] if closed else [*cut, points[-1]]
    return points
