"""Figures of the report as inline SVG, and a PNG writer for what is a picture: spectrograms.

Colours are CSS variables of the report's style sheet (--c0 … for series, --ink, --line), so one
figure serves light and dark pages.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH = 520  # of a chart's view box; the page scales it
COLOURS = 8
_MAX_POINTS = 500  # a curve of more points is drawn by bucket means
# Anchors of matplotlib's magma (CC0), from dark to light; between them colours are interpolated.
_MAGMA = np.array(
    [
        (0, 0, 4),
        (28, 16, 68),
        (79, 18, 123),
        (129, 37, 129),
        (181, 54, 122),
        (229, 80, 100),
        (251, 135, 97),
        (254, 194, 135),
        (252, 253, 191),
    ],
    np.float32,
)


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: x and y of equal length. `dots` draws points (few, exact) instead of a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dots: bool = False


def line_chart(series: Sequence[Series], x_label: str, y_label: str, height: int = 300) -> str:
    """Curves over a common grid, with a legend; a label that two series share stands there once.

    Values that are not finite are left out.
    """
    points = [_finite(one) for one in series]
    points = [(one, x, y) for one, (x, y) in zip(series, points, strict=True) if len(x)]
    if not points:
        return '<p class="none">No values were logged.</p>'
    x_all, y_all = (np.concatenate([point[i] for point in points]) for i in (1, 2))
    out, across, up = _axes(x_all, y_all, x_label, y_label, height)
    for one, x, y in points:
        colour = f"var(--c{one.colour % COLOURS})"
        if one.dots:
            out.append(_curve(x, y, across, up, f'class="eval" stroke="{colour}"'))
            out += [
                f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="3.5" fill="{colour}">'
                f"<title>{escape(one.label)}: {b:.4g} at {a:g}</title></circle>"
                for a, b in zip(x, y, strict=True)
            ]
        else:
            out.append(_curve(x, y, across, up, f'class="raw" stroke="{colour}"'))
            out.append(_curve(x, _smooth(y), across, up, f'class="mean" stroke="{colour}"'))
    out.append("</svg>")
    return _legend([one for one, _, _ in points]) + "".join(out)


def scatter(
    series: Sequence[Series],
    lines: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
    height: int = 380,
) -> str:
    """Points, with y = x as a dashed line, and for each series a line.

    Args:
      series: their points, all finite.
      lines: (slope, intercept) of each.
    """
    series = [one for one in series if len(one.x)]
    if not series:
        return '<p class="none">There is nothing to show.</p>'
    x_all, y_all = (np.concatenate([getattr(one, axis) for one in series]) for axis in ("x", "y"))
    out, across, up = _axes(x_all, y_all, x_label, y_label, height)
    ends = max(x_all.min(), y_all.min()), min(x_all.max(), y_all.max())
    if ends[0] < ends[1]:
        out.append(_curve(ends, ends, across, up, 'class="eval" stroke="var(--soft)"'))
    for one in series:
        out += [
            f'<circle class="point" cx="{across(a):.1f}" cy="{up(b):.1f}" r="2.5" '
            f'fill="var(--c{one.colour % COLOURS})"/>'
            for a, b in zip(one.x, one.y, strict=True)
        ]
    for one, (slope, intercept) in zip(series, lines, strict=True):
        x = np.array([min(one.x), max(one.x)])
        style = f'class="mean" stroke="var(--c{one.colour % COLOURS})"'
        out.append(_curve(x, slope * x + intercept, across, up, style))
    out.append("</svg>")
    return _legend(series) + "".join(out)


def spectrum(counts: Sequence[int], label: str) -> str:
    """Use of each code, most used first, as a small bar picture (1 bar a code)."""
    values = np.sort(np.asarray(counts, np.float64))[::-1]
    height, most = 36, max(values.max(initial=0), 1)
    width = 200 / max(len(values), 1)
    bars = "".join(
        f"M{i * width:.2f} {height}v-{value / most * (height - 2):.2f}h{width * 0.8:.2f}V{height}z"
        for i, value in enumerate(values)
        if value
    )
    return (
        f'<svg class="bars" viewBox="0 0 200 {height}" role="img" preserveAspectRatio="none" '
        f'aria-label="{escape(label)}"><path d="{bars}"/></svg>'
    )


def alignment(
    mel: np.ndarray, duration: float, words: Sequence[tuple[str, float, float]], codes: np.ndarray
) -> str:
    """A spectrogram with the words under it and each word's codes, one line a level.

    Args:
      mel: log-mel [frames, bands].
      duration: seconds that the frames cover.
      words: (text, start, end) in seconds.
      codes: int [words, levels].
    """
    top, line = 150, 20
    levels = codes.shape[1]
    height = top + 8 + line * (levels + 2)
    width = max(720, int(duration * 170))
    left = 40
    across = _scale((0.0, duration), left, width)
    image = base64.b64encode(png(magma(mel.T[::-1]))).decode()
    out = [
        _open(height, "spectrogram with words and TASTE tokens", width),
        f'<image x="{left}" y="0" width="{width - left}" height="{top}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{image}"/>',
    ]
    for row, name in enumerate(["", *(f"q{level}" for level in range(levels))]):
        out.append(
            f'<text x="{left - 8}" y="{_row(top, line, row)}" text-anchor="end">{name}</text>'
        )
    for index, (text, start, end) in enumerate(words):
        a, b = across(start), across(min(end, duration))
        middle = (a + b) / 2
        out.append(f'<path class="edge" d="M{a:.1f} 0V{height - line}M{b:.1f} 0V{height - line}"/>')
        out.append(
            f'<rect class="word" x="{a:.1f}" y="{top + 6}" width="{b - a:.1f}" height="19"/>'
        )
        fit = f' textLength="{b - a - 4:.1f}" lengthAdjust="spacingAndGlyphs"'
        fit = fit if 7.2 * len(text) > b - a - 4 > 4 else ""
        out.append(
            f'<text class="said" x="{middle:.1f}" y="{_row(top, line, 0)}" '
            f'text-anchor="middle"{fit}>{escape(text)}</text>'
        )
        for level in range(levels):
            out.append(
                f'<text class="code" x="{middle:.1f}" y="{_row(top, line, level + 1)}" '
                f'text-anchor="middle">{int(codes[index, level])}</text>'
            )
    for second in np.arange(0, duration, 0.5):
        out.append(
            f'<text class="time" x="{across(second):.1f}" y="{height - 4}" '
            f'text-anchor="middle">{second:g} s</text>'
        )
    return f'<div class="wide">{"".join(out)}</svg></div>'


def magma(values: np.ndarray) -> np.ndarray:
    """Colours of a picture: float [H, W] -> uint8 [H, W, 3]; the range is stretched to fit."""
    low, high = np.quantile(values, [0.02, 0.995])
    place = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * (len(_MAGMA) - 1)
    index = np.minimum(place.astype(np.int64), len(_MAGMA) - 2)
    part = (place - index)[..., None]
    return (_MAGMA[index] * (1 - part) + _MAGMA[index + 1] * part).round().astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """PNG file of uint8 [H, W, 3] (8-bit RGB, no filter; ISO/IEC 15948)."""
    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _axes(x: np.ndarray, y: np.ndarray, x_label: str, y_label: str, height: int):
    """An SVG's beginning with both axes, and the scales from values to places."""
    left, right, top, bottom = 52, 24, 14, 40
    x_ticks, y_ticks = _ticks(x.min(), x.max()), _ticks(y.min(), y.max())
    across = _scale(x_ticks, left, WIDTH - right)
    up = _scale(y_ticks, height - bottom, top)
    out = [_open(height, f"{y_label} over {x_label}")]
    for tick in y_ticks:
        place = up(tick)
        out.append(f'<path class="grid" d="M{left} {place:.1f}H{WIDTH - right}"/>')
        out.append(
            f'<text x="{left - 7}" y="{place + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in x_ticks:
        place = f'x="{across(tick):.1f}" y="{height - bottom + 17}"'
        out.append(f'<text {place} text-anchor="middle">{_number(tick)}</text>')
    out.append(f'<text x="{WIDTH - right}" y="{height - 6}" text-anchor="end">{x_label}</text>')
    out.append(f'<text x="{left}" y="{height - 6}">{y_label}</text>')
    return out, across, up


def _legend(series: Sequence[Series]) -> str:
    colours = {one.label: one.colour % COLOURS for one in series}
    keys = (
        f'<span><i style="background:var(--c{colour})"></i>{escape(label)}</span>'
        for label, colour in colours.items()
    )
    return f'<div class="legend">{"".join(keys)}</div>'


def _row(top: int, line: int, row: int) -> int:
    return top + line * (row + 1)


def _open(height: int, label: str, width: int = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'


def _finite(one: Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(one.x, np.float64), np.asarray(one.y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if one.dots or len(x) <= _MAX_POINTS:
        return x, y
    buckets = np.array_split(np.arange(len(x)), _MAX_POINTS)
    return np.array([x[b].mean() for b in buckets]), np.array([y[b].mean() for b in buckets])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over about 4 % of the curve; at the ends over what is there."""
    reach = max(len(values) // 50, 1)
    sums = np.concatenate([[0], np.cumsum(values)])
    i = np.arange(len(values))
    first, last = np.maximum(i - reach, 0), np.minimum(i + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _curve(x: np.ndarray, y: np.ndarray, across, up, style: str) -> str:
    path = "".join(
        f"{'L' if i else 'M'}{across(a):.1f} {up(b):.1f}"
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    )
    return f'<path {style} d="{path}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Round values, at least two, that enclose [low, high]."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= raw), default=10)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _scale(ticks: Sequence[float], start: float, end: float):
    low, high = ticks[0], ticks[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
