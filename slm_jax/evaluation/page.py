"""Pieces of HTML that the sections of a report are made of, styled by report.html."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import soundfile

from slm_jax.evaluation import wer


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def card(inner: str) -> str:
    return f'<div class="card">{inner}</div>'


def folded(title: str, inner: str) -> str:
    return f'<details class="card"><summary>{title}</summary>{inner}</details>'


def missing(what: str) -> str:
    return f'<p class="none">{what}.</p>'


def protocol(text: str) -> str:
    return f'<p class="protocol">{escape(text)}</p>'


def number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def player(folder: Path, clip: Mapping[str, Any]) -> str:
    """A clip {"name", "file", "text"} of a listing in `folder`, inside the page as FLAC.

    With "heard", the words that differ from "text" are underlined.
    """
    audio, rate = soundfile.read(folder / clip["file"], dtype="int16")
    flac = io.BytesIO()
    soundfile.write(flac, audio, rate, format="FLAC")
    source = f"data:audio/flac;base64,{base64.b64encode(flac.getvalue()).decode()}"
    heard = clip.get("heard")
    below = f"<br><em>heard: {_marked(clip['text'], heard)}</em>" if heard is not None else ""
    return (
        f'<div class="clip"><strong>{escape(clip["name"])}</strong>'
        f'<audio controls preload="none" src="{source}"></audio>'
        f"<div>{escape(clip['text'])}{below}</div></div>"
    )


def _marked(written: str, heard: str) -> str:
    """The heard text with the words underlined that the written one lacks."""
    expected = set(wer.normalize(written))
    return " ".join(
        escape(word) if set(wer.normalize(word)) <= expected else f"<mark>{escape(word)}</mark>"
        for word in heard.split()
    )
