"""Names beside the dots of a plot, placed so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from textwrap import fill
from typing import Any

# Lengths are in typographic points, 1/72 inch.
NAME_DISTANCES = (4, 8, 13, 20, 29, 40, 54, 72, 95, 125)  # from the marker to the name, in the order they are tried
DIRECTIONS = 16  # around the marker, in which places are tried
MARKER_RADIUS = 5
MAX_UNTIED_DISTANCE = 9  # a name farther away is connected to its dot by a line
LINE_CHARACTERS = 22  # at which a name wraps
COVERING_COST = 1000  # of a place that covers something, in points of distance
MISLEADING_COST = 25  # of a place that is nearer to another dot, likewise

Point = tuple[float, float]


@dataclass(frozen=True)
class _Box:
    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: _Box) -> float:
        """The smaller side of the area that both cover; 0 where they are apart."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(min(width, height), 0.0)

    def leaves(self, other: _Box) -> float:
        """How far this box reaches out of the other."""
        return max(other.x0 - self.x0, self.x1 - other.x1, other.y0 - self.y0, self.y1 - other.y1, 0.0)

    def nearest(self, point: Point) -> Point:
        return min(max(point[0], self.x0), self.x1), min(max(point[1], self.y0), self.y1)

    def distance(self, point: Point) -> float:
        return math.dist(point, self.nearest(point))

    def crossed(self, line: tuple[Point, Point]) -> bool:
        """Whether a line between two points passes through the box (Liang and Barsky's clipping)."""
        (x, y), (x_end, y_end) = line
        start, end = 0.0, 1.0
        for position, step, low, high in ((x, x_end - x, self.x0, self.x1), (y, y_end - y, self.y0, self.y1)):
            if step == 0:
                if not low < position < high:
                    return False
                continue
            enters, exits = sorted(((low - position) / step, (high - position) / step))
            start, end = max(start, enters), min(end, exits)
        return start < end


@dataclass
class _Plot:
    """What a name must not cover (boxes by owner, and lines), and the dots it could be mistaken for, in pixels."""

    bounds: _Box
    markers: list[Point]
    boxes: dict[str, _Box] = field(default_factory=dict)
    lines: list[tuple[Point, Point]] = field(default_factory=list)

    def cost(self, box: _Box, centre: Point, point: str) -> float:
        """The cost of placing the name of `point`, the key of its marker, in a box."""
        leader = (centre, box.nearest(centre))
        covered = sum(1 + o for other in self.boxes.values() if (o := box.overlap(other)))
        crossed = sum(box.crossed(line) for line in self.lines)
        crossed += sum(other.crossed(leader) for key, other in self.boxes.items() if key != point)
        distance = math.dist(*leader)
        nearer = any(box.distance(other) < distance for other in self.markers if other != centre)
        return COVERING_COST * (box.leaves(self.bounds) + covered + 0.3 * crossed) + MISLEADING_COST * nearer


def label_points(
    axes, points: dict[str, Point], *, fontsize: float = 9, avoid: Iterable[Any] = (), line: Sequence[Point] = ()
) -> list[Any]:
    """Write a name beside each of `points`, in data coordinates; returns the texts.

    Each name takes the nearest free place; names with the most neighbours choose first. The limits of the axes must be
    final before the call, and the layout of the figure after it.

    Args:
        axes: of matplotlib.
        points: by name.
        fontsize: in typographic points.
        avoid: further artists that names must not cover.
        line: vertices of a line that names must not cover, in data coordinates.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    unit = figure.dpi / 72

    def pixels(point: Point) -> Point:
        x, y = axes.transData.transform(point)
        return float(x), float(y)

    centres = {name: pixels(point) for name, point in points.items()}
    plot = _Plot(_Box(*axes.bbox.extents), list(centres.values()))
    plot.lines += pairwise(map(pixels, line))
    radius = MARKER_RADIUS * unit
    plot.boxes |= {f"point {name}": _around(centre, (radius, radius)) for name, centre in centres.items()}
    plot.boxes |= {f"other {k}": _Box(*a.get_window_extent(renderer).extents) for k, a in enumerate(avoid)}

    def neighbours(name: str) -> float:
        return sum(1 / (unit + math.dist(centres[name], other)) for other in centres.values())

    texts = []
    for name in sorted(points, key=neighbours, reverse=True):
        centre = centres[name]
        text = _write(axes, fill(name, LINE_CHARACTERS), points[name], fontsize)
        extent = text.get_window_extent(renderer)
        best = math.inf
        for place, candidate, distance in _places(centre, (extent.width, extent.height), unit):
            if distance >= best:
                continue
            if (cost := distance + plot.cost(candidate, centre, f"point {name}")) < best:
                best, middle, box = cost, place, candidate
        text.set_position([(m - c) / unit for m, c in zip(middle, centre, strict=True)])
        plot.boxes[f"name {name}"] = box
        texts.append(text)
        near = box.nearest(centre)
        if math.dist(near, centre) > (MARKER_RADIUS + MAX_UNTIED_DISTANCE) * unit:
            plot.lines.append((centre, near))
            _tie(axes, points[name], [(m - c) / unit for m, c in zip(near, centre, strict=True)])
    return texts


def _around(centre: Point, half: Point) -> _Box:
    return _Box(centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1])


def _places(centre: Point, size: Point, unit: float) -> Iterator[tuple[Point, _Box, float]]:
    """The places for a text of that size: its middle, its box, and the cost of the place."""
    for distance in NAME_DISTANCES:
        for k in range(DIRECTIONS):
            angle = 2 * math.pi * k / DIRECTIONS
            direction = math.cos(angle), math.sin(angle)
            # A text beside the dot is attached at its end, one above or below at its middle.
            reach = [max(-1.0, min(1.0, 1.5 * d)) * s / 2 for d, s in zip(direction, size, strict=True)]
            x, y = (
                c + (MARKER_RADIUS + distance) * unit * d + r for c, d, r in zip(centre, direction, reach, strict=True)
            )
            # Readers look to the right first, and above and below before the left.
            yield (x, y), _around((x, y), (size[0] / 2, size[1] / 2)), distance + 1.5 * (1 - direction[0])


def _write(axes, text: str, point: Point, fontsize: float):
    return axes.annotate(
        text,
        point,
        (0, 0),
        parse_math=False,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=fontsize,
        linespacing=1.05,
        bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.6, "linewidth": 0},
        zorder=5,
    )


def _tie(axes, point: Point, offset: list[float]) -> None:
    """A line from a dot to its name, which is `offset` typographic points away."""
    arrow = {"arrowstyle": "-", "color": "0.5", "lw": 0.7, "shrinkA": 0, "shrinkB": MARKER_RADIUS - 1}
    axes.annotate("", point, offset, textcoords="offset points", arrowprops=arrow, zorder=2)
