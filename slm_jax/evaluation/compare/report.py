"""compare.md and compare.html: systems in tables by what they say, their grids, their speech."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from slm_jax.evaluation import page
from slm_jax.evaluation.compare.measure import PROTOCOL
from slm_jax.evaluation.tokenizer_report import table

MARKDOWN, HTML = "compare.md", "compare.html"
HEAD = (
    "system",
    "text",
    "columns a second",
    "speech tokens a second",
    "columns of an utterance",
    "parameters, M (without text ids)",
    "steps x rows",
    "budget spent, %",
    "speech, nats a second",
    "text, nats a second",
    "pair accuracy, %",
    "first audio, columns",
    "first audio, ms",
    "decoded columns a second",
    "x real time",
    "word error, %",
)
_NONE = ""
_TEMPLATE = Path(__file__).parents[1] / "report.html"
Lines = Sequence[Mapping[str, Any]]


def write(folder: Path, lines: Lines, grids: Mapping[str, str], head: Mapping[str, Any]) -> str:
    """Writes both files, each whole or not at all.

    Args:
      folder: made if missing.
      lines: what launch/compare.py keeps of each system.
      grids: of each system's layout, as text.
      head: {"operations", "utterances", "seconds", "ceilings"}.

    Returns:
      The Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(lines, head)
    for name, content in {MARKDOWN: text, HTML: html(lines, grids, head)}.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(content + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)
    return text


def markdown(lines: Lines, head: Mapping[str, Any]) -> str:
    """A table for each group of equal streams."""
    parts = ["# Systems compared", _about(head)]
    for title, rows in tables(lines).items():
        parts += [f"## They say: {title}", table(HEAD, rows)]
    parts += [f"- {name}: {why}" for name, why in notes(lines)]
    return "\n\n".join([*parts, f"Protocol: {PROTOCOL}"])


def html(lines: Lines, grids: Mapping[str, str], head: Mapping[str, Any]) -> str:
    """The page."""
    sections = {
        f"They say: {title}": page.card(
            page.table(tuple(map(escape, HEAD)), [[*map(escape, row)] for row in rows])
        )
        for title, rows in tables(lines).items()
    }
    remarks = "".join(f"<p><b>{escape(name)}</b>: {escape(why)}</p>" for name, why in notes(lines))
    sections["Remarks"] = page.card(remarks or page.missing("nothing"))
    sections["Grids"] = "".join(
        page.folded(escape(name), f"<pre>{escape(grid)}</pre>") for name, grid in grids.items()
    )
    sections["Listen"] = "".join(map(_players, lines)) or page.missing("no system spoke")
    sections["Protocol"] = page.card(page.protocol(PROTOCOL))
    body = "\n".join(
        f"<section><h2>{escape(title)}</h2>\n{inner}\n</section>"
        for title, inner in sections.items()
    )
    fields = {
        "title": "Systems compared",
        "subtitle": f"Written {datetime.datetime.now():%Y-%m-%d %H:%M}. {escape(_about(head))}",
        "tiles": "",
        "sections": body,
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in fields.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def tables(lines: Lines) -> dict[str, list[list[str]]]:
    """Group -> rows below `HEAD`, the lowest loss first."""
    measured = [line for line in lines if "group" in line]
    measured.sort(key=lambda line: (line["group"], line.get("speech_nats", 0.0)))
    found: dict[str, list[list[str]]] = {}
    for line in measured:
        found.setdefault(line["group"], []).append(_row(line))
    return found


def notes(lines: Lines) -> list[tuple[str, str]]:
    """(system, why) of what was not measured."""
    mute = [
        (line["system"], f"cannot say a text: {line['mute']}") for line in lines if "mute" in line
    ]
    absent = [
        (line["system"], f"not trained: the dataset has no {', '.join(line['missing'])}")
        for line in lines
        if "missing" in line
    ]
    helped = [(line["system"], line["given"]) for line in lines if "given" in line]
    failed = [
        (line["system"], f"failed while it was {stage}: {error}")
        for line in lines
        for stage, error in line.get("errors", {}).items()
    ]
    return [*failed, *absent, *helped, *mute]


def _row(line: Mapping[str, Any]) -> list[str]:
    def number(name: str, form: str, factor: float = 1.0) -> str:
        value = line.get(name)
        return _NONE if value is None else format(factor * value, form)

    sizes = number("parameters", ".2f", 1e-6), number("parameters_without_text", ".2f", 1e-6)
    delay = _NONE
    if "column_ms" in line and "first_columns" in line:
        once = 1 if line["at_once"] else line["first_columns"]
        delay = f"{line['column_ms'] * once:.0f}"
    return [
        line["system"],
        line["text"] or "none",
        number("columns_per_second", ".1f"),
        number("speech_targets_per_second", ".1f"),
        number("columns", ".0f"),
        f"{sizes[0]} ({sizes[1]})",
        f"{line['steps']} x {line['rows']}",
        number("share", ".1f", 100),
        number("speech_nats", ".1f"),
        number("text_nats", ".1f"),
        _interval(line.get("pairs"), "value"),
        number("first_columns", ".0f"),
        delay,
        number("columns_decoded_per_second", ".0f"),
        number("speech_per_second", ".2f"),
        _interval(line.get("wer"), "wer"),
    ]


def _interval(figure: Mapping[str, float] | None, name: str) -> str:
    if figure is None:
        return _NONE
    value, low, high = (format(100 * figure[key], ".0f") for key in (name, "low", "high"))
    return f"{value} ({low} to {high})"


def _about(head: Mapping[str, Any]) -> str:
    limits = ", ".join(
        f"{name} {_interval(figure, 'wer')}" for name, figure in head["ceilings"].items()
    )
    return (
        f"Each system was trained with {head['operations']:.3g} operations; figures are of "
        f"{head['utterances']} held-out utterances, {head['seconds']:.0f} s. Word error, in %, of "
        f"recordings of the spoken texts, and of their codes through each tokenizer: {limits}."
    )


def _players(line: Mapping[str, Any]) -> str:
    clips = line.get("clips", [])
    players = "".join(page.player(Path(clip["file"]).parent, _listed(clip)) for clip in clips)
    return page.folded(escape(line["system"]), players) if players else ""


def _listed(clip: Mapping[str, str]) -> dict[str, str]:
    return {**clip, "file": Path(clip["file"]).name}
