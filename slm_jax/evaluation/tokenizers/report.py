"""tokenizers.json, .md and .html: the tables of all tokenizers, curves over the rate, players."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from slm_jax.evaluation import figures, page
from slm_jax.evaluation.tokenizer_report import table
from slm_jax.evaluation.tokenizers import code_report
from slm_jax.evaluation.tokenizers.code_report import NONE, Table, figure
from slm_jax.evaluation.tokenizers.published import CODEC_SUPERB_TINY_SPEECH

JSON, MARKDOWN, HTML, CLIPS = "tokenizers.json", "tokenizers.md", "tokenizers.html", "clips"
_TEMPLATE = Path(__file__).parents[1] / "report.html"

# Metric -> its name, its format, and a factor.
COLUMNS: Mapping[str, tuple[str, str, float]] = {
    "mel": ("mel", ".2f", 1),
    "stft": ("stft", ".2f", 1),
    "pesq_wb": ("PESQ-WB", ".2f", 1),
    "stoi": ("STOI", ".3f", 1),
    "estoi": ("ESTOI", ".3f", 1),
    "si_sdr": ("SI-SDR, dB", ".1f", 1),
    "f0_correlation": ("F0 correlation", ".2f", 1),
    "f0_rmse_cents": ("F0 RMSE, cents", ".0f", 1),
    "voicing_error": ("voicing error, %", ".1f", 100),
    "duration_ratio": ("duration ratio", ".3f", 1),
    "delay": ("delay, ms", ".0f", 1000),
    "wer": ("word error, %", ".1f", 100),
    "dwer": ("dWER, %", ".1f", 100),
    "speaker_cosine": ("speaker cosine", ".2f", 1),
    "speaker_margin": ("speaker margin", ".2f", 1),
    "dnsmos": ("DNSMOS", ".2f", 1),
}
# Of these, those that sets in other languages have.
_ANY_LANGUAGE = ("mel", "pesq_wb", "stoi", "f0_correlation", "f0_rmse_cents", "speaker_cosine")
_ANY_LANGUAGE += ("dnsmos",)
_OTHERS = (
    "The starter weights of all tokenizers were trained on English alone: these languages are new "
    "to them, and TASTE and the units hear them through an English Whisper. No word errors, since "
    "no recogniser of these languages is at hand."
)
_CURVES = ("pesq_wb", "stoi", "mel", "wer", "speaker_cosine", "dnsmos")  # over the rate


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes all three; each appears whole or not at all.

    Args:
      folder: made if missing; its clips/ has the players' files.
      result: {"protocol", "devices", "corpus": set -> {utterances, minutes, languages,
        licence, in_means}, "unavailable":
        metric -> why, "systems": name -> what `resynthesise` returns, "statistics": name ->
        figures of the codes, "phones": {"protocol", "systems": name -> of `judge_units`},
        "probes": of `run_probes`, "clips": [{"id", "text", "system", "file"}]}, or as much of it
        as is known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    written = {JSON: text, MARKDOWN: markdown(result), HTML: html(folder, result)}
    for name, content in written.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(content + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables, in Markdown."""
    parts = ["# Speech tokenizers, measured", _corpus(result["corpus"])]
    parts.append(
        "Means over sets in English, word error over all of their utterances together; brackets "
        "hold 95 % intervals."
    )
    parts += ["## Resynthesis", table(*_systems(result["systems"])), _unavailable(result)]
    for one in _other_languages(result):
        parts += [f"## {one.title}", one.text, table(one.head, one.rows)]
    if result.get("statistics"):
        parts += ["## Codes", table(*_statistics(result["statistics"]))]
    for one in _code_tables(result):
        parts += [f"## {one.title}", one.text]
        parts += [table(one.head, one.rows)] if one.rows else []
    parts += ["## Published, not measured here", table(*_published())]
    return "\n\n".join([*parts, *(f"Protocol: {text}" for text in _protocols(result))])


def html(folder: Path, result: Mapping[str, Any]) -> str:
    """The page."""
    sections = {
        "Rate and quality": _curves(result["systems"]),
        "Resynthesis": page.card(
            page.table(*_escaped(*_systems(result["systems"]))) + f"<p>{_unavailable(result)}</p>"
        ),
        **{one.title: _code_table(one) for one in _other_languages(result)},
        "Codes": page.card(page.table(*_escaped(*_statistics(result.get("statistics", {}))))),
        **{one.title: _code_table(one) for one in _code_tables(result)},
        "Listen": _players(folder, result.get("clips", [])),
        "Published, not measured here": page.card(page.table(*_escaped(*_published()))),
        "Protocol": page.card("".join(map(page.protocol, _protocols(result)))),
    }
    body = "\n".join(f"<section><h2>{t}</h2>\n{inner}\n</section>" for t, inner in sections.items())
    fields = {
        "title": "Speech tokenizers, measured",
        "subtitle": f"Written {datetime.datetime.now():%Y-%m-%d %H:%M}. "
        + escape(_corpus(result["corpus"])),
        "tiles": "",
        "sections": body,
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in fields.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def _corpus(corpus: Mapping[str, Any]) -> str:
    sets = (
        f"{name} ({', '.join(size['languages'])}; {size['utterances']} utterances, "
        f"{size['minutes']:.1f} min; {size['licence']})"
        for name, size in corpus.items()
    )
    return "Held-out speech of " + ", ".join(sets) + "."


def _systems(systems: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["system", "kbit/s", *(name for name, _, _ in COLUMNS.values()), "EER, %", "failed"]
    rows = []
    for name, found in systems.items():
        rate, eer = found["bits_per_second"], found["eer"]
        row = [name, NONE if rate is None else f"{rate / 1000:.2f}"]
        row += [figure(found["mean"][metric], *form[1:]) for metric, form in COLUMNS.items()]
        row += [NONE if eer is None else f"{100 * eer:.1f}", str(found["failed"])]
        rows.append(row)
    return head, rows


def _other_languages(result: Mapping[str, Any]) -> list[Table]:
    """A table of the sets that are in no mean, if there are any."""
    sets = [name for name, size in result["corpus"].items() if not size["in_means"]]
    rows = [
        [name, system]
        + [figure(found["sets"][name][metric], *COLUMNS[metric][1:]) for metric in _ANY_LANGUAGE]
        for name in sets
        for system, found in result["systems"].items()
    ]
    head = ["set", "system", *(COLUMNS[metric][0] for metric in _ANY_LANGUAGE)]
    return [Table("Resynthesis of other languages", _OTHERS, head, rows)] if sets else []


def _unavailable(result: Mapping[str, Any]) -> str:
    found = result.get("unavailable", {})
    return " ".join(
        f"{metric.capitalize()}: not available, {why}." for metric, why in found.items()
    )


def _code_tables(result: Mapping[str, Any]) -> list[Table]:
    tables = [code_report.phones(result["phones"])] if result.get("phones") else []
    return tables + list(code_report.probes(result["probes"]) if result.get("probes") else ())


def _code_table(one: Table) -> str:
    shown = page.table(*_escaped(one.head, one.rows)) if one.rows else ""
    return page.card(f"<p>{escape(one.text)}</p>{shown}")


def _protocols(result: Mapping[str, Any]) -> list[str]:
    """Of resynthesis, phones and probes, as far as they were measured."""
    sections = (result, result.get("phones"), result.get("probes"))
    return [section["protocol"] for section in sections if section]


def _statistics(statistics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["system", "items/s", "bit/s", "bit/s at entropy", "codes used", "perplexity"]
    head += ["unit error, noise 20 dB, %", "unit error, gain -6 dB, %"]
    rows = []
    for name, found in statistics.items():
        levels = found["levels"]
        row = [name, f"{found['items_per_second']:.1f}", f"{found['bits_per_second']:.0f}"]
        row.append(f"{found['entropy_bits_per_second']:.0f}")
        row.append(", ".join(f"{one['used']}/{one['vocab']}" for one in levels))
        row.append(", ".join(f"{one['perplexity']:.0f}" for one in levels))
        row += [figure(found[damage], ".1f", 100) for damage in ("noise", "gain")]
        rows.append(row)
    return head, rows


def _published() -> tuple[list[str], list[list[str]]]:
    head = ["Codec-SUPERB tiny, Speech", "kbit/s", "mel", "PESQ-WB", "STOI", "F0CORR"]
    rows = [
        [one.name, f"{one.kbps:g}", *(f"{value:.3f}" for value in one[2:])]
        for one in CODEC_SUPERB_TINY_SPEECH
    ]
    return head, rows


def _curves(systems: Mapping[str, Any]) -> str:
    """One chart a metric; systems of one kind, told by the first word of their name, are joined."""
    coded = {name: one for name, one in systems.items() if one["bits_per_second"]}
    kinds = list(dict.fromkeys(name.split()[0] for name in coded))
    charts = []
    for metric in _CURVES:
        title, _, factor = COLUMNS[metric]
        series = []
        for colour, kind in enumerate(kinds):
            points = sorted(
                (one["bits_per_second"] / 1000, factor * one["mean"][metric]["value"])
                for name, one in coded.items()
                if name.split()[0] == kind and one["mean"][metric]
            )
            if points:
                x, y = zip(*points, strict=True)
                series.append(figures.Series(kind, x, y, colour, dots=True))
        if series:
            chart = figures.line_chart(series, "kbit/s", title)
            charts.append(page.card(f"<h3>{escape(title)}</h3>{chart}"))
    pairs = (charts[at : at + 2] for at in range(0, len(charts), 2))
    return "".join(f'<div class="pair">{"".join(pair)}</div>' for pair in pairs)


def _players(folder: Path, clips: Sequence[Mapping[str, Any]]) -> str:
    """One card an utterance, with every system's clip."""
    cards = []
    for name in dict.fromkeys(clip["id"] for clip in clips):
        own = [clip for clip in clips if clip["id"] == name]
        shown = "".join(
            page.player(folder / CLIPS, {**clip, "name": clip["system"], "text": ""})
            for clip in own
        )
        text = escape(own[0]["text"] or "")
        cards.append(page.card(f"<h3>{escape(name)}</h3><p>{text}</p>{shown}"))
    return "".join(cards) or page.missing("No clips were kept")


def _escaped(
    head: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    return [escape(cell) for cell in head], [[escape(cell) for cell in row] for row in rows]
