"""The report's section on the swap experiment."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.evaluation import figures, page, swap
from slm_jax.evaluation.swap_scores import DURATION, LIMITS, OWN, PITCH, Swap, log_changes

_NAMES = {DURATION: "duration", OWN: "duration, own", PITCH: "pitch"}
_AXES = {  # of the figure: one unit in natural logarithms, and what it is called
    DURATION: (np.log(2), "log2 of duration"),
    PITCH: (np.log(2) / 12, "semitones"),
}


def section(run: Path, found: dict[str, Any] | None) -> str:
    """HTML of section "swap" of RUN/eval.json, with figures and players of RUN/swap."""
    if not found:
        return page.missing("No words were swapped")
    swaps, players = swap.load(run)
    charts = "".join(_chart(found["kinds"], swaps, measure) for measure in _AXES)
    tables = _words(found["kinds"]) + _neighbours(found["kinds"]) + _control(found["control"])
    out = f'<div class="pair">{charts}</div>' + page.card(tables + page.protocol(found["protocol"]))
    for one in players:
        clips = "".join(page.player(run / swap.FOLDER, clip) for clip in one["clips"])
        out += page.card(f"<h3>{escape(one['kind'])}: {escape(one['id'])}</h3>{clips}")
    return out


def _chart(kinds: Sequence[dict[str, Any]], swaps: Sequence[Swap], measure: str) -> str:
    unit, name = _AXES[measure]
    series, lines = [], []
    for colour, one in enumerate(kinds):
        line = one["measures"].get(measure, {}).get("relative")
        if not line or line["slope"][0] is None:
            continue
        x, y = log_changes([s for s in swaps if s.kind == one["kind"]], measure)
        x, y = x[np.isfinite(x)] / unit, y[np.isfinite(y)] / unit
        label = f"{one['kind']}: slope {line['slope'][0]:.2f}"
        series.append(figures.Series(label, x, y, colour))
        lines.append((line["slope"][0], line["intercept"][0] / unit))
    if not series:
        return ""
    chart = figures.scatter(series, lines, f"{name}, B over A", "swapped over unchanged")
    return page.card(f"<h3>{_NAMES[measure].capitalize()} of the swapped word</h3>{chart}")


def _words(kinds: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in kinds:
        for measure, score in one["measures"].items():
            line = score["relative"]
            rows.append(
                [
                    f"{one['kind']}: {_NAMES[measure]}",
                    f"{line['n']:,} of {line['groups']:,}",
                    f"{score['failed']:,}",
                    *(_estimate(line[name]) for name in ("slope", "intercept", "correlation")),
                    _estimate(score["whole"]["slope"]),
                    _estimate(score["absolute"]["slope"]),
                    _estimate(score["absolute"]["correlation"]),
                ]
            )
    head = ["pairs: measure", "words of sentences", "failed", "slope", "intercept", "correlation"]
    head += ["slope, all codes", "absolute: slope", "absolute: correlation"]
    return f"<h3>The swapped word</h3>{page.table(head, rows)}"


def _neighbours(kinds: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in kinds:
        for measure, score in one["measures"].items():
            beside = score["neighbours"]
            again = beside["repeated"]
            semitones = measure == PITCH
            unit, scale = ("st", 1) if semitones else ("ms", 1000)
            rows.append(
                [
                    f"{one['kind']}: {_NAMES[measure]}",
                    f"{beside['n']:,}",
                    f"{beside['failed']:,}",
                    _estimate(beside["slope"]),
                    *(
                        f"{_estimate(beside[name], scale, digits=1)} {unit}"
                        for name in ("mean", "absolute")
                    ),
                    _share(beside["within"]),
                    f"{_value(again['absolute'], scale, digits=1)} {unit}",
                    _share(again["within"]),
                ]
            )
    within = f"within {1000 * LIMITS[DURATION]:g} ms or {LIMITS[PITCH]:g} st"
    head = ["pairs: measure", "words", "failed", "slope", "mean change", "mean absolute", within]
    head += ["repeated: mean absolute", "repeated: within"]
    return f"<h3>Its neighbours</h3>{page.table(head, rows)}"


def _control(control: dict[str, Any]) -> str:
    return (
        f"<p>Control: {control['words_recoded']} of {control['words']:,} words had other codes when"
        f" the recording was encoded again; of {control['swaps']:,} swaps with those codes "
        f"{control['other_length']} changed the length of the speech; the largest change of a "
        f"sample was {page.number(control['largest_difference'], '.1g')}.</p>"
    )


def _estimate(estimate: Sequence[float | None], scale: float = 1, digits: int = 2) -> str:
    value, low, high = estimate
    if value is None:
        return "none"
    ends = f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
    return f"{scale * value:.{digits}f} ({ends})"


def _value(estimate: Sequence[float | None], scale: float, digits: int) -> str:
    return page.number(None if estimate[0] is None else scale * estimate[0], f".{digits}f")


def _share(estimate: Sequence[float | None]) -> str:
    return "none" if estimate[0] is None else page.percent(estimate[0])
