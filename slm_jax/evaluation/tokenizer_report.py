"""tokenizer.json and tokenizer.md: the figures of a tokenizer, for programs and for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

JSON, MARKDOWN = "tokenizer.json", "tokenizer.md"
_NONE = "–"
_WIDE = ("all", "heard", "unheard")  # groups of voices, where all else is one voice


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes both files; each appears whole or not at all.

    Args:
      folder: made if missing.
      result: of `slm_jax.evaluation.tokenizer.evaluate_tokenizer`, or as much of it as is known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    for name, content in ((JSON, text), (MARKDOWN, markdown(result))):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(content + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables, in Markdown."""
    parts = [
        "# The tokenizer, measured",
        f"Tokenizer `{result['tokenizer']}`. Brackets hold 95 % intervals; Δ is the paired "
        "difference to the original.",
        _sets(result["sets"]),
    ]
    groups = list(result["sets"])
    if result["systems"]:
        wide = [name for name in _WIDE if name in groups]
        parts += ["## Resynthesis", _systems(result, wide)]
        parts += ["## By voice", _systems(result, [name for name in groups if name not in wide])]
    parts += ["## Rate", _rates(result["rates"])]
    if speed := result.get("speed"):
        parts.append(
            f"One second of audio takes {speed['encode']:.3f} s to encode and "
            f"{speed['decode']:.3f} s to decode on {', '.join(result['devices'])} "
            f"({speed['utterances']} utterances, compiled; words and their times given)."
        )
    if bits := result["systems"].get("Opus 6 kbit/s", {}).get("all", {}).get("bits_per_second"):
        parts.append(f"The packets of Opus take {bits:.0f} bit/s.")
    if result["robustness"]:
        parts += ["## Robustness", _robustness(result["robustness"])]
    return "\n\n".join([*parts, f"Protocol: {result['protocol']}"])


def _sets(sets: Mapping[str, Any]) -> str:
    rows = []
    for name, size in sets.items():
        known = _NONE if name in _WIDE else ("no" if size["unheard"] else "yes")
        rows.append([name, known, size["utterances"], size["words"], f"{size['seconds'] / 60:.1f}"])
    return table(["voice", "heard in training", "utterances", "words", "minutes"], rows)


def _systems(result: Mapping[str, Any], groups: Sequence[str]) -> str:
    judges = list(next(iter(result["systems"].values()))["all"]["wer"])
    head = ["voices", "system"]
    for judge in judges:
        head += [f"word error, {judge}", "Δ, points"]
    head += ["words within 50 ms", "not aligned", "speaker margin, of the original's"]
    head += ["DNSMOS", "Δ", "failed"]
    rows = []
    for group in groups:
        for name, by_group in result["systems"].items():
            found = by_group[group]
            row = [group, name]
            for judge in judges:
                rate = found["wer"][judge]
                row += [_percent(rate["rate"]), _percent(rate["difference"], "+.1f")]
            lost = found["durations"]
            row += [_number(lost["share"]), lost["unaligned"]]
            row.append(_number(found["speaker"]["of_original"]))
            row += [
                _number(found["dnsmos"]["mean"]),
                _number(found["dnsmos"]["difference"], "+.2f"),
            ]
            rows.append([*row, found["failed"]])
    return table(head, rows)


def _rates(rates: Mapping[str, Any]) -> str:
    head = ["voices", "codes, bit/s", "at their entropy", "text", "speaker vector", "total"]
    head += ["total at entropy", "codes used"]
    rows = []
    for group, rate in rates.items():
        row = [group, f"{rate['codes']['value']:.1f}", f"{rate['codes_entropy']:.1f}"]
        row += [f"{rate[part]['value']:.1f}" for part in ("text", "speaker")]
        row += [_number(rate["total"], ".1f"), f"{rate['total_entropy']:.1f}"]
        rows.append([*row, ", ".join(f"{one['used']}/{one['vocab']}" for one in rate["levels"])])
    return table(head, rows)


def _robustness(robustness: Mapping[str, Any]) -> str:
    head = ["voices", "damage", "word error, damaged original", "Δ, points"]
    head += ["word error, TASTE", "Δ, points"]
    rows = [
        [group, name]
        + [
            cell
            for rate in by_group[group].values()
            for cell in (_percent(rate["rate"]), _percent(rate["difference"], "+.1f"))
        ]
        for group in next(iter(robustness.values()))
        for name, by_group in robustness.items()
    ]
    return table(head, rows)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _percent(figure: Mapping[str, float] | None, form: str = ".1f") -> str:
    if figure is None:
        return _NONE
    value, low, high = (format(100 * figure[key], form) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _number(figure: Mapping[str, float] | None, form: str = ".2f") -> str:
    if figure is None:
        return _NONE
    value, low, high = (format(figure[key], form) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
