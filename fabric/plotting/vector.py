"""The drawing board of raster.py once more, as SVG: the same calls, and text that stays text."""

from __future__ import annotations

from xml.sax.saxutils import escape

from fabric.plotting.raster import Color, Points
from fabric.printable import one_line

_CAPITALS = 0.72  # height of capitals in a font of size 1


class Drawing:
    """An SVG picture, white at first. Coordinates are pixels, y downwards."""

    def __init__(self, width: int, height: int) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif" fill="none" stroke-linecap="round" stroke-linejoin="round">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def polyline(self, points: Points, color: Color, width: float = 2.0, alpha: float = 1.0) -> None:
        """Joins points with a round pen."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        faint = f' stroke-opacity="{alpha:g}"' if alpha < 1 else ""
        self._parts.append(f'<polyline points="{path}" stroke="{_hex(color)}" stroke-width="{width:.2f}"{faint}/>')

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        """A filled disc."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{_hex(color)}"/>')

    def rectangle(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """A filled box."""
        box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect {box} fill="{_hex(color)}"/>')

    def text(
        self, x: float, y: float, text: str, size: float, color: Color = (40, 40, 40), anchor: float = 0.0,
        up: bool = False,
    ) -> None:  # fmt: skip
        """Writes on the baseline y; size is the height of capitals; anchor 0, 0.5, 1: x is its start, middle, end.

        up: the text runs upwards, and x, y trade roles.
        """
        side = {0.0: "start", 0.5: "middle", 1.0: "end"}[anchor]
        turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if up else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size / _CAPITALS:.1f}" text-anchor="{side}" '
            f'fill="{_hex(color)}"{turned}>{escape(one_line(text))}</text>'
        )

    def svg(self) -> bytes:
        """The picture as an SVG file."""
        return ("\n".join([*self._parts, "</svg>"]) + "\n").encode()


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
