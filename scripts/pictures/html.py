"""HTML: pages that open without a server and need no other file: tables, pictures and curves inside them."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise

from scripts.data.colours import class_colours

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #888; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
img { max-width: 100%; }
svg { width: 100%; font-size: 11px; }
figure { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1.5rem; }
.note { color: #555; max-width: 48rem; }
"""
# Of a chart, in its own units: width, height, and the margins to the left and below.
WIDTH, HEIGHT, LEFT, BELOW = 460, 190, 56, 22
# A curve of more points is drawn as the means of as many groups.
MOST_POINTS = 200
Curve = Sequence[tuple[float, float]]


def page(title: str, parts: Iterable[str], *, refresh: int | None = None) -> str:
    """A whole page, from pieces of its body.

    Args:
        title: of the window.
        parts: HTML.
        refresh: seconds after which a browser reads the page again; None never.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    head = f'<meta charset="utf-8">\n{again}<title>{escape(title)}</title>\n<style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every cell is escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def picture(png: bytes, description: str) -> str:
    """An image that holds its own data."""
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def chart(curves: Mapping[str, Curve], title: str, words: str = "") -> str:
    """Curves over the iterations as a figure in SVG, with words below; values that are not finite are left out.

    Args:
        curves: (iteration, value) pairs by name. Curves of more than 200 points are drawn as means of groups.
        title: heading.
        words: what the reader should know.

    Returns:
        HTML; empty where no curve has a point.
    """
    shown = {name: _thinned([(x, y) for x, y in curve if math.isfinite(y)]) for name, curve in curves.items()}
    shown = {name: curve for name, curve in shown.items() if curve}
    if not shown:
        return ""
    xs, ys = ([point[axis] for curve in shown.values() for point in curve] for axis in (0, 1))
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    (first, last), (low, high) = (min(xs), max(max(xs), min(xs) + 1)), (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - 10)
        return round(across, 1), round(8 + (high - y) / (high - low) * (HEIGHT - BELOW - 8), 1)

    lines = []
    for tick in y_ticks:
        _, y = place(first, tick)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in (tick for tick in x_ticks if first <= tick <= last):
        lines.append(f'<text x="{place(tick, low)[0]}" y="{HEIGHT - 6}" text-anchor="middle">{tick:g}</text>')
    for curve, colour in zip(shown.values(), class_colours(len(shown))):
        points = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(curve) < 30:
            dots = (place(*point) for point in curve)
            lines += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in dots]
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(lines)}</svg>'
    names = [
        f'<b style="color:{colour}">&#9632;</b> {escape(name)}'
        for name, colour in zip(shown, class_colours(len(shown)))
    ]
    legend = f"<br>{' '.join(names)}" if len(shown) > 1 else ""
    said = f'<br><span class="note">{escape(words)}</span>' if words else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>{svg}<figcaption>{said}</figcaption></figure>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Up to seven round numbers, evenly spaced, from at most ``low`` to at least ``high``."""
    if low == high:
        low, high = min(low, 0), max(high, 0) or 1
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _thinned(curve: Curve) -> Curve:
    if len(curve) <= MOST_POINTS:
        return curve
    edges = [round(number * len(curve) / MOST_POINTS) for number in range(MOST_POINTS + 1)]
    groups = [curve[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
