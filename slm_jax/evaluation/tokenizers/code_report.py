"""Tables of what codes say: probes, and units against phones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

NONE = "–"
_METRICS = {"accuracy": "right", "wer": "word error", "cer": "letter error"}
_PHONES = (
    "PNMI and purities of codes of the coarsest level; the same codes in another order have the "
    "PNMI of chance. ABX at 50 % is chance; features are compared by their angle, codes by the "
    "share of levels that differ."
)
_HEADS = {"linear": "linear", "bilstm": "BiLSTM"}


class Table(NamedTuple):
    """A table, what it is called and what stands above it; cells are plain text."""

    title: str
    text: str
    head: list[str]
    rows: list[list[str]]


def figure(found: Mapping[str, float] | None, form: str, factor: float) -> str:
    """A figure and its interval, or a dash."""
    if found is None:
        return NONE
    value, low, high = (format(factor * found[key], form) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def phones(found: Mapping[str, Any]) -> Table:
    """Section "phones" of the results."""
    head = ["system", "PNMI", "of shuffled codes", "phone purity, %", "cluster purity, %"]
    head += ["ABX error within voices, %", "across voices, %", "frames"]
    rows = []
    for name, one in found["systems"].items():
        if why := one.get("unavailable"):
            rows.append([name, f"not available: {why}", *[NONE] * 6])
            continue
        known = one["agreement"]
        row = [name, *[NONE] * 4]
        if known:
            row[1:3] = [f"{known[key]:.3f}" for key in ("pnmi", "pnmi_shuffled")]
            row[3:] = [f"{100 * known[f'{key}_purity']:.1f}" for key in ("phone", "cluster")]
        errors = (one["within"]["error"], one["across"]["error"])
        row += [NONE if error is None else f"{100 * error:.1f}" for error in errors]
        rows.append([*row, str(known["frames"]) if known else NONE])
    return Table("Units and phones", _PHONES, head, rows)


def probes(found: Mapping[str, Any]) -> Iterator[Table]:
    """Section "probes" of the results, a table for each task."""
    for task, one in found["tasks"].items():
        title = f"Probe: {task}"
        if why := one.get("unavailable"):
            yield Table(title, f"Not available: {why}.", [], [])
            continue
        metrics = list(one["baseline"])
        columns = [(head, metric) for metric in metrics for head in _HEADS]
        head = ["system", *(f"{_METRICS[metric]}, %, {_HEADS[head]}" for head, metric in columns)]
        asked = one["examples"][1]
        rows = [
            [name, *(_cell(by_head.get(h, {}).get(metric), asked) for h, metric in columns)]
            for name, by_head in one["systems"].items()
        ]
        nothing = (figure(one["baseline"][metric], ".1f", 100) for _, metric in columns)
        rows.append(["hearing nothing", *nothing])
        text = "Trained on {} examples, asked about {}".format(*one["examples"])
        text += f", {one['note']}" if one["note"] else ""
        text += f"; one of {', '.join(one['classes'])}." if one["classes"] else "."
        yield Table(title, text, head, rows)


def _cell(found: Mapping[str, float] | None, asked: int) -> str:
    """A figure, and of how many examples if not of all: some had no codes."""
    text = figure(found, ".1f", 100)
    return text if found is None or found["n"] == asked else f"{text}, of {found['n']}"
