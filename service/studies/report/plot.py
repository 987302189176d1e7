"""Line charts as SVG: no script, no font, no colour of its own; the page's style sheet gives those."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 560
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 42
COLOURS: Final = 8
_LOG_FROM: Final = 20.0
"""A vertical axis whose largest value is so many times its least is logarithmic."""


class Point(NamedTuple):
    x: float
    y: float
    error: float | None = None


class Series(NamedTuple):
    label: str
    points: Sequence[Point]
    is_best: bool = False


class Scale(NamedTuple):
    ticks: list[float]
    place: Callable[[float], float]
    """A value's place between 0 and 1."""


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """A figure with its legend; empty text where there is nothing to draw."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    x = linear([point.x for one in drawn for point in one.points])
    ys = [end for one in drawn for point in one.points for end in _ends(point)]
    y = logarithmic(ys) if min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM else linear(ys)
    body = [*_grid(x, y), *(_line(one, index, x, y) for index, one in enumerate(drawn)), *_labels(x_label, y_label)]
    items = "".join(f"<li>{_sample(index)}{_legend(one)}</li>" for index, one in enumerate(drawn))
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(body)}</svg><ul class="legend">{items}</ul></figure>'
    )


def _ends(point: Point) -> tuple[float, float]:
    """Of its error bar."""
    error = point.error or 0.0
    return point.y - error, point.y + error


def linear(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = _nice((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [index * step for index in range(first, last + 1)]
    return Scale(ticks, lambda value: (value - ticks[0]) / (ticks[-1] - ticks[0]))


def logarithmic(values: Sequence[float]) -> Scale:
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    every = max(1, (last - first) // 6)
    ticks = [10.0**power for power in range(first, last + 1, every)]
    return Scale(ticks, lambda value: (math.log10(value) - first) / (last - first))


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, … times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def _at(x: Scale, y: Scale, one: float, other: float) -> tuple[float, float]:
    across = LEFT + x.place(one) * (WIDTH - LEFT - RIGHT)
    down = HEIGHT - BOTTOM - y.place(other) * (HEIGHT - TOP - BOTTOM)
    return across, down


def _grid(x: Scale, y: Scale) -> list[str]:
    parts = []
    for tick in y.ticks:
        _, down = _at(x, y, x.ticks[0], tick)
        parts.append(f'<path class="grid" d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for tick in x.ticks:
        across, _ = _at(x, y, tick, y.ticks[0])
        parts.append(f'<path class="grid" d="M{across:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_tick(tick)}</text>'
        )
    return parts


def _labels(x_label: str, y_label: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    along = f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}"'
    upwards = f'x="14" y="{middle}" transform="rotate(-90 14 {middle})"'
    told = ((along, x_label), (upwards, y_label))
    return [f'<text class="label" {where} text-anchor="middle">{escape(text)}</text>' for where, text in told]


def _line(series: Series, index: int, x: Scale, y: Scale) -> str:
    places = [_at(x, y, point.x, point.y) for point in series.points]
    path = "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in places)
    dots = (
        "".join(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3"/>' for across, down in places)
        if len(places) < 15
        else ""
    )
    strong = " best" if series.is_best else ""
    return (
        f'<g class="series c{index % COLOURS}{strong}"{_dashes(index)}><title>{escape(series.label)}</title>'
        f'{_bars(series, x, y)}<path d="{path}"/>{dots}</g>'
    )


def _bars(series: Series, x: Scale, y: Scale) -> str:
    """Standard errors, at some fifteen points at most."""
    every = max(1, len(series.points) // 15)
    parts = []
    for point in series.points[::every]:
        if point.error:
            (across, low), (_, high) = (_at(x, y, point.x, end) for end in _ends(point))
            parts.append(f"M{across:.1f} {low:.1f}V{high:.1f}")
    return f'<path class="bars" d="{"".join(parts)}"/>' if parts else ""


def _dashes(index: int) -> str:
    """Past the last colour they begin anew with another dash."""
    turn = index // COLOURS
    return f' stroke-dasharray="{8 // turn} {3 * turn}"' if turn else ""


def _sample(index: int) -> str:
    line = f'<g class="series c{index % COLOURS}"{_dashes(index)}><path d="M0 4H24"/></g>'
    return f'<svg class="sample" viewBox="0 0 24 8" width="24" height="8" aria-hidden="true">{line}</svg>'


def _legend(series: Series) -> str:
    return f"<strong>{escape(series.label)}</strong>" if series.is_best else escape(series.label)


def _tick(value: float) -> str:
    return f"{value:.4g}".replace("-", "−").replace("e+0", "e").replace("e−0", "e−")
