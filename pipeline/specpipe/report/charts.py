"""Pictures of reports as inline SVG: points, lines, grouped bars. They need no script."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 520, 316
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 50, 44
COLOURS = ("var(--blue)", "var(--amber)", "var(--green)", "var(--violet)", "var(--red)")
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """An axis: values from `low` to `high`, in pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False
    percent: bool = False

    def shown(self, value: float) -> str:
        """Return a value as the axis shows it."""
        return f"{value:.0%}" if self.percent else number(value)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (self._of(v) for v in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * (value - low) / ((high - low) or 1.0)

    def _of(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.logarithmic else value

    def ticks(self) -> list[float]:
        """Return a few round values on the axis."""
        if self.logarithmic:
            low, high = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            step = max(1, (high - low) // 5)
            return [10.0**i for i in range(low, high + 1, step)]
        return round_ticks(self.low, self.high)


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((m * power for m in (1, 2, 5, 10) if span / (m * power) <= count), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass
class Chart:
    """The shapes of one picture; `title` describes it to a reader of the text only."""

    title: str
    across: str
    up: str
    shapes: list[str] = field(default_factory=list)

    def svg(self, x: Axis | None, y: Axis | None, names: Mapping[float, str] | None = None) -> str:
        """Return the picture, with axes; `names` label places across instead of round values."""
        ticks = dict(names) if names is not None else {}
        if x is not None and names is None:
            ticks = {x.at(v): number(v) for v in x.ticks()}
        frame = [
            f'<text x="{LEFT}" y="14" class="axis">{escape(self.up)}</text>',
            *([_grid(y.at(v), y.shown(v)) for v in y.ticks()] if y else []),
            *(_under(place, name) for place, name in ticks.items()),
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" class="axis" '
            f'text-anchor="middle">{escape(self.across)}</text>',
        ]
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">'
            f"<title>{escape(self.title)}</title>{''.join([*frame, *self.shapes])}</svg>"
        )

    def legend(self, names: Mapping[str, str]) -> None:
        """Write the names of colours on one line under the name of the axis."""
        x = float(LEFT)
        for name, colour in names.items():
            self.shapes.append(
                f'<text x="{x:.0f}" y="34" style="fill:{colour}">{escape(name)}</text>'
            )
            x += 8.2 * len(name) + 16

    def rule(self, y: float, text: str) -> None:
        """Draw a dashed line over the whole width, with a word at its right end."""
        self.shapes.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>'
        )
        if text:
            self.shapes.append(
                f'<text x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end" class="quiet">'
                f"{escape(text)}</text>"
            )


def number(value: float) -> str:
    """Return a short number for an axis."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"


def _grid(y: float, text: str) -> str:
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" class="quiet">{text}</text>'
    )


def _under(x: float, text: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" class="quiet">'
        f"{escape(text)}</text>"
    )


def up_axis(highest: float, lowest: float = 0.0, *, percent: bool = False) -> Axis:
    """Return the vertical axis, with room over the highest value."""
    high = highest + 0.06 * (highest - lowest or 1.0)
    return Axis(lowest, high, HEIGHT - BOTTOM, TOP, percent=percent)


def _slots(count: int) -> list[float]:
    width = (WIDTH - RIGHT - LEFT) / max(1, count)
    return [LEFT + width * (i + 0.5) for i in range(count)]


def ratios(
    values: Mapping[str, float], median: float, interval: tuple[float, float] | None, title: str
) -> str:
    """Return a point for each ratio, the line at 1, and the median with its interval."""
    chart = Chart(title, "prompt", "speed-up, times")
    y = up_axis(max([*values.values(), 1.0]), min([*values.values(), 1.0, 0.9]) - 0.05)
    if interval is not None:
        top, bottom = y.at(interval[1]), y.at(interval[0])
        chart.shapes.append(
            f'<rect x="{LEFT}" width="{WIDTH - RIGHT - LEFT}" y="{top:.1f}" '
            f'height="{max(1.0, bottom - top):.1f}" class="band"/>'
        )
    chart.rule(y.at(1.0), "")
    places = _slots(len(values))
    for x, (name, value) in zip(places, values.items(), strict=True):
        colour = COLOURS[0] if value >= 1 else COLOURS[4]
        chart.shapes.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y.at(1.0):.1f}" y2="{y.at(value):.1f}" '
            f'style="stroke:{colour};stroke-width:2"/>'
            f'<circle cx="{x:.1f}" cy="{y.at(value):.1f}" r="4" style="fill:{colour}">'
            f"<title>prompt {escape(name)}: {value:.2f}</title></circle>"
        )
    text = f"median {median:.2f}"
    if interval is not None:
        text += f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    chart.legend({text: COLOURS[0]})
    every = max(1, math.ceil(len(values) / 20))
    return chart.svg(None, y, dict(list(zip(places, values, strict=True))[::every]))


@dataclass(frozen=True)
class Curve:
    """A line through points, and how it is drawn."""

    points: Sequence[Point]
    colour: str
    dashed: bool = False

    def shapes(self, name: str, places: Mapping[float, float], y: Axis) -> list[str]:
        """Return the line and its points."""
        path = " ".join(f"{places[a]:.1f},{y.at(b):.1f}" for a, b in self.points)
        dash = ";stroke-dasharray:6 4" if self.dashed else ""
        style = f"fill:none;stroke:{self.colour};stroke-width:2{dash}"
        return [
            f'<polyline points="{path}" style="{style}"/>',
            *(
                f'<circle cx="{places[a]:.1f}" cy="{y.at(b):.1f}" r="3.5" '
                f'style="fill:{self.colour}"><title>{escape(name)}, {number(a)}: {b:.3g}</title>'
                "</circle>"
                for a, b in self.points
            ),
        ]


def curves(series: Mapping[str, Curve], across: str, up: str, title: str) -> str:
    """Return a picture of curves; every value across has a place of its own."""
    points = [point for curve in series.values() for point in curve.points]
    values = sorted({x for x, _ in points})
    places = dict(zip(values, _slots(len(values)), strict=True))
    chart = Chart(title, across, up)
    y = up_axis(max((v for _, v in points), default=1.0))
    for name, curve in series.items():
        chart.shapes += curve.shapes(name, places, y)
    names = {f"{'- - ' if c.dashed else ''}{name}": c.colour for name, c in series.items()}
    chart.legend(names)
    return chart.svg(None, y, {place: number(value) for value, place in places.items()})


def groups(series: Mapping[str, Sequence[Point]], across: str, up: str, title: str) -> str:
    """Return bars, those of one value across next to each other, with their shares."""
    values = sorted({x for points in series.values() for x, _ in points})
    places = dict(zip(values, _slots(len(values)), strict=True))
    width = min(34.0, (WIDTH - RIGHT - LEFT) / max(1, len(values)) * 0.8 / max(1, len(series)))
    chart = Chart(title, across, up)
    y = up_axis(
        max((v for points in series.values() for _, v in points), default=1.0), percent=True
    )
    colours = dict(zip(series, COLOURS, strict=False))
    for i, (name, points) in enumerate(series.items()):
        for a, b in points:
            x = places[a] + width * (i - len(series) / 2)
            chart.shapes.append(
                f'<rect x="{x:.1f}" y="{y.at(b):.1f}" width="{width - 2:.1f}" '
                f'height="{HEIGHT - BOTTOM - y.at(b):.1f}" style="fill:{colours[name]}"/>'
                f'<text x="{x + width / 2 - 1:.1f}" y="{y.at(b) - 4:.1f}" text-anchor="middle" '
                f'class="quiet">{b:.0%}</text>'
            )
    chart.legend(colours)
    return chart.svg(None, y, {place: number(value) for value, place in places.items()})


def margins(
    series: Mapping[str, tuple[Sequence[float], str]],
    limit: float | None,
    title: str,
    least: float = 1e-5,
) -> str:
    """Return a point for each margin on a logarithmic axis, and the limit.

    `series` has a row for each name: its margins and its colour.
    """
    found = [v for values, _ in series.values() for v in values]
    low = min([least, *found, limit or least]) if found else least
    high = max([10.0, *found])
    x = Axis(max(low, 1e-7), high * 1.5, LEFT + 40, WIDTH - RIGHT, logarithmic=True)
    chart = Chart(title, "margin of the reference, nats (logarithmic)", "")
    for i, (name, (values, colour)) in enumerate(series.items()):
        y = TOP + (HEIGHT - TOP - BOTTOM) * (i + 0.5) / len(series)
        chart.shapes.append(
            f'<text x="2" y="{y + 4:.1f}" style="fill:{colour}">{escape(name)}</text>'
            f'<line x1="{LEFT + 40}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        for k, value in enumerate(values):
            jitter = (k * 7 % 5 - 2) * 5
            chart.shapes.append(
                f'<circle cx="{x.at(max(value, x.low)):.1f}" cy="{y + jitter:.1f}" r="4" '
                f'style="fill:{colour};fill-opacity:.75"><title>{value:.3g} nats</title>'
                "</circle>"
            )
    if limit is not None:
        place = x.at(limit)
        chart.shapes.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
            f'class="rule"/><text x="{place:.1f}" y="{TOP - 6}" text-anchor="middle" '
            f'class="quiet">limit of near-ties</text>'
        )
    return chart.svg(x, None)


def empty(text: str) -> str:
    """Return a frame with a sentence, where there is nothing to draw."""
    return f'<div class="empty">{escape(text)}</div>'
