"""Honest and cheating distances as a picture: one panel a segment, one row a cheat.

The axis is logarithmic. Distances of zero, and those that the rule could not compare,
have columns of their own at its two ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from bentoml_secure.cli.calibration import Found, SegmentFound

_WIDTH, _LEFT, _RIGHT = 900, 200, 60
_ROW, _TITLE, _AXIS, _HEAD = 18, 30, 34, 40
_HONEST, _CHEAT, _PASSING, _LINE = "#1b6ca8", "#b8860b", "#b00020", "#333333"
_MOST_DOTS = 400


def draw(found: Found) -> str:
    """Return the picture as SVG."""
    low, high = _decades(found.segments)
    parts, top = [], _HEAD
    for index, one in enumerate(found.segments):
        height, panel = _panel(one, index, top, low, high)
        parts += panel
        top += height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" '
        f'viewBox="0 0 {_WIDTH} {top}" font-family="sans-serif" font-size="11">'
    )
    title = f"{found.plan.model_name}: honest and cheating distances"
    return "\n".join(
        [
            head,
            f'<rect width="{_WIDTH}" height="{top}" fill="white"/>',
            _text(_LEFT, 20, title, size=14),
            *parts,
            "</svg>",
            "",
        ]
    )


def _decades(segments: Iterable[SegmentFound]) -> tuple[int, int]:
    """Return the powers of ten that all finite distances lie between."""
    seen = []
    for one in segments:
        found = one.calibrated
        seen += [found.tolerance, *found.spread.per_input]
        seen += [d for cheat in found.cheats for d in cheat.distances]
    logs = [math.log10(d) for d in seen if 0 < d < math.inf]
    if not logs:
        return -8, 0
    return math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)


def _panel(
    one: SegmentFound, index: int, top: int, low: int, high: int
) -> tuple[int, list[str]]:
    found = one.calibrated
    rows = 1 + len(found.cheats)
    floor = top + _TITLE + rows * _ROW
    parts = [
        _text(
            10,
            top + 16,
            f"segment {index}, {one.rule}: tolerance {found.tolerance:.3g}",
            size=12,
        )
    ]
    for power in range(low, high + 1):
        x = _place(10.0**power, low, high)
        parts += [
            f'<line x1="{x:.1f}" y1="{top + _TITLE}" x2="{x:.1f}" y2="{floor}" '
            'stroke="#dddddd"/>',
            _text(x, floor + 14, f"1e{power}", anchor="middle"),
        ]
    parts.append(_text(_LEFT - 24, floor + 14, "0", anchor="middle"))
    parts.append(_text(_WIDTH - 28, floor + 14, "inf", anchor="middle"))
    parts += _row("honest", found.spread.per_input, _HONEST, top + _TITLE, low, high)
    for number, cheat in enumerate(found.cheats, 1):
        y = top + _TITLE + number * _ROW
        label, color = cheat.name, _PASSING if cheat in found.passing else _CHEAT
        if not cheat.distances:
            label += " (no effect)" if not cheat.not_applicable else " (n/a)"
        parts += _row(label, cheat.distances, color, y, low, high)
    if found.tolerance > 0:
        x = _place(found.tolerance, low, high)
        parts.append(
            f'<line x1="{x:.1f}" y1="{top + _TITLE}" x2="{x:.1f}" y2="{floor}" '
            f'stroke="{_LINE}" stroke-width="1.5" stroke-dasharray="5 3"/>'
        )
    return _TITLE + rows * _ROW + _AXIS, parts


def _row(
    label: str, distances: Sequence[float], color: str, y: float, low: int, high: int
) -> list[str]:
    middle = y + _ROW / 2
    # The ends are what is judged: they are kept however many there are.
    shown = sorted(distances)
    step = max(len(shown) // _MOST_DOTS, 1)
    shown = shown if step == 1 else [*shown[::step], shown[-1]]
    return [
        _text(_LEFT - 40, middle + 4, label, anchor="end"),
        *(
            f'<circle cx="{_place(d, low, high):.1f}" cy="{middle:.1f}" r="3" '
            f'fill="{color}" fill-opacity="0.45"/>'
            for d in shown
        ),
    ]


def _place(distance: float, low: int, high: int) -> float:
    if distance <= 0:
        return _LEFT - 24
    if not math.isfinite(distance):
        return _WIDTH - 28
    share = (math.log10(distance) - low) / (high - low)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _text(
    x: float, y: float, words: str, *, size: int = 11, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )
