"""The report of a run: one HTML file with figures and players inside, made without a network."""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import json
import os
import platform
from collections.abc import Callable
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from slm_jax.audio.features import WHISPER_RATE, whisper_log_mel
from slm_jax.errors import UserError
from slm_jax.evaluation import figures, results, wer

FILE = "report.html"
SAMPLES = Path("samples") / "samples.json"
METRICS = "metrics.jsonl"
_PACKAGES = ("slm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_PICTURES = 2  # alignment pictures: enough to look at, and each weighs as much as a clip


def write(run_dir: str | Path) -> Path:
    """Writes RUN/report.html from what the run left behind, and returns its path.

    Reads metrics.jsonl, eval.json, samples/samples.json with its clips, config.gin. A part that is
    missing is named as missing in the report.

    Raises:
      UserError: `run_dir` is no folder, or one of these files is damaged.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise UserError(f"{run} is not the folder of a run", "give the folder that training made")
    measured, metrics, samples = results.load(run), _metrics(run), _samples(run)
    sections: list[tuple[str, Callable[[], str]]] = [
        ("Losses", lambda: _losses(metrics)),
        ("Held-out speech codes", lambda: _speech(measured)),
        ("Held-out text", lambda: _text(measured.get("language_model"))),
        ("Spoken output", lambda: _spoken(measured.get("spoken"))),
        ("Listen", lambda: _listen(run, samples)),
        ("Words and tokens in time", lambda: _alignments(run, samples)),
        ("Use of the codebooks", lambda: _tokens(measured.get("tokens"))),
        ("Data", lambda: _datasets(measured.get("datasets"))),
        ("Configuration", lambda: _config(run)),
        ("Versions", _versions),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>\n{make()}\n</section>" for title, make in sections)
    page = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    fields = {
        "title": escape(f"slm_jax run: {run.resolve().name}"),
        "subtitle": f"Written {datetime.datetime.now():%Y-%m-%d %H:%M}. "
        "Every figure is of held-out utterances unless it says otherwise.",
        "tiles": _tiles(measured, metrics),
        "sections": body,
    }
    for name, value in fields.items():
        page = page.replace("{{" + name + "}}", value)
    path = run / FILE
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a crash cut short is left out."""
    path = run / METRICS
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def _samples(run: Path) -> list[dict[str, Any]]:
    path = run / SAMPLES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _tiles(measured: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    tiles = []
    if run := measured.get("language_model"):
        ours, unigram, word = (
            sum(level[name] or 0 for level in run["speech"])
            for name in ("cross_entropy", "unigram", "given_word")
        )
        text = run["text"]
        below = f"speech, all levels; unigram {unigram:.2f}, from the word {word:.2f}"
        if ours:
            tiles.append((f"{ours:.2f} nats", below))
        untouched = _number(text["reference_perplexity"], ".1f")
        tiles.append((f"{text['perplexity']:.1f}", f"text perplexity; untouched LLM {untouched}"))
    for score in measured.get("spoken", {}).get("scores", []):
        if score["clip"] == "continuation" and "wer" in score:
            below = f"word error of spoken continuations, heard by {escape(score['judge'])}"
            tiles.append((_percent(score["wer"]), below))
    if train := [line for line in metrics if line.get("split", "train") == "train"]:
        rates = [line["tokens_per_second"] for line in train if "tokens_per_second" in line]
        speed = f", {np.median(rates):,.0f} tokens/s" if rates else ""
        tiles.append((f"{train[-1]['step']:,}", f"training steps{speed}"))
    return "".join(f'<div class="tile"><b>{b}</b><span>{span}</span></div>' for b, span in tiles)


def _losses(metrics: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in metrics for name in line["losses"]))
    if not names:
        return _missing("No losses were logged")
    speech = [name for name in names if name.startswith("speech")]
    charts = []
    for title, group in [
        ("Text", [name for name in names if name not in speech]),
        ("Speech, by codebook level", speech),
    ]:
        series = []
        for colour, name in enumerate(group):
            for split in ("train", "eval"):
                lines = [
                    line
                    for line in metrics
                    if line.get("split", "train") == split and name in line["losses"]
                ]
                if lines:
                    x = [line["step"] for line in lines]
                    y = [line["losses"][name] for line in lines]
                    series.append(figures.Series(name, x, y, colour, dots=split == "eval"))
        chart = figures.line_chart(series, "step", "nats (dots: held out)")
        charts.append(f'<div class="card"><h3>{title}</h3>{chart}</div>')
    return f'<div class="pair">{"".join(charts)}</div>'


def _speech(measured: dict[str, Any]) -> str:
    runs = {"this run": measured.get("language_model")} | measured.get("variants", {})
    out = []
    for name, run in runs.items():
        if not run:
            continue
        rows = []
        for level in run["speech"]:
            ours, best = level["cross_entropy"], min(level["unigram"], level["given_word"])
            own = "none", "none", "none"
            if ours is not None:
                mark = "good" if ours < best else "bad"
                low, high = level["interval"]
                own = (
                    f'<span class="{mark}">{ours:.3f}</span>',
                    f"{low:.2f} to {high:.2f}",
                    f'<span class="{mark}">{ours - best:+.3f}</span>',
                )
            rows.append(
                [
                    f"q{level['level']}",
                    *own[:2],
                    f"{level['unigram']:.3f}",
                    f"{level['given_word']:.3f}",
                    own[2],
                    _percent(level["accuracy"]),
                    f"{level['n']:,}",
                ]
            )
        head = ["level", "speech LM", "95 % interval", "unigram", "P(code | word)"]
        head += ["vs the better", "accuracy", "n"]
        out.append(f"<h3>{escape(name)}: {escape(run['layout'])}</h3>{_table(head, rows)}")
        out.append(f'<p class="protocol">{escape(run["protocol"])}</p>')
    return _card("".join(out)) if out else _missing("The language model was not evaluated")


def _text(run: dict[str, Any] | None) -> str:
    if not run:
        return _missing("The language model was not evaluated")
    text = run["text"]
    rows = [
        ["this run", f"{text['perplexity']:.2f}", f"{text['cross_entropy']:.3f}", f"{text['n']:,}"],
        [
            "the untouched text LLM, same tokens",
            _number(text["reference_perplexity"], ".2f"),
            _number(text["reference_cross_entropy"], ".3f"),
            f"{text['n']:,}",
        ],
    ]
    return _card(_table(["model", "perplexity", "cross-entropy (nats)", "tokens"], rows))


def _spoken(run: dict[str, Any] | None) -> str:
    if not run:
        return _missing("Nothing was spoken")
    rows = []
    for score in run["scores"]:
        figures_ = ["none", "", "0", ""]
        if "wer" in score:
            interval = f"{_percent(score['low'])} to {_percent(score['high'])}"
            figures_ = [_percent(score["wer"]), interval, f"{score['n']}", f"{score['words']:,}"]
        rows.append([score["clip"], escape(score["judge"]), *figures_, str(score["failed"])])
    head = ["clip", "heard by", "word error", "95 % interval", "clips", "words", "failed"]
    return _card(_table(head, rows) + f'<p class="protocol">{escape(run["protocol"])}</p>')


def _listen(run: Path, samples: list[dict[str, Any]]) -> str:
    if not samples:
        return _missing("No clips were made")
    cards = []
    for sample in samples:
        clips = "".join(_clip(run, clip) for clip in sample["clips"])
        cards.append(f'<div class="card"><h3>{escape(sample["id"])}</h3>{clips}</div>')
    note = '<p class="soft">Words that the ASR heard otherwise than written are underlined.</p>'
    return note + "".join(cards)


def _clip(run: Path, clip: dict[str, Any]) -> str:
    audio, rate = soundfile.read(run / SAMPLES.parent / clip["file"], dtype="int16")
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


def _alignments(run: Path, samples: list[dict[str, Any]]) -> str:
    aligned = [sample for sample in samples if sample["clips"][:1]]
    aligned = [sample for sample in aligned if sample["clips"][0]["name"] == "original"][:_PICTURES]
    if not aligned:
        return _missing("No aligned sample was kept")
    out = []
    for sample in aligned:
        file = run / SAMPLES.parent / sample["clips"][0]["file"]
        audio, rate = soundfile.read(file, dtype="float32")
        if rate != WHISPER_RATE:
            message = f"{file} has a rate of {rate} Hz"
            raise UserError(message, f"write samples at {WHISPER_RATE} Hz")
        mel = np.asarray(whisper_log_mel(jnp.asarray(audio)[None]))[0].T
        part = sample["alignment"]
        words = [tuple(word) for word in part["words"]]
        picture = figures.alignment(mel, len(audio) / rate, words, np.array(part["codes"]))
        out.append(f'<div class="card"><h3>{escape(sample["id"])}</h3>{picture}</div>')
    return "".join(out)


def _tokens(stats: dict[str, Any] | None) -> str:
    if not stats:
        return _missing("No token statistics")
    rows = [
        [
            f"q{level}",
            f"{one['used']} of {one['vocab']}",
            f"{one['entropy_bits']:.2f} of {np.log2(one['vocab']):.2f}",
            f"{one['perplexity']:.1f}",
            figures.spectrum(one["counts"], f"use of the codes of level {level}"),
        ]
        for level, one in enumerate(stats["levels"])
    ]
    head = ["level", "codes used", "entropy (bits)", "perplexity", "use, by rank"]
    note = (
        f"{stats['items']:,} words in {stats['seconds'] / 60:.1f} minutes of the train split: "
        f"{stats['items_per_second']:.2f} words/s, {stats['bits_per_second']:.0f} bits/s, "
        f"{stats['entropy_bits_per_second']:.0f} bits/s at the empirical entropy of each level."
    )
    return _card(_table(head, rows) + f'<p class="protocol">{note}</p>')


def _datasets(reports: list[dict[str, Any]] | None) -> str:
    if not reports:
        return _missing("No dataset was described")
    return "".join(_card(_dataset(report)) for report in reports)


def _dataset(data: dict[str, Any]) -> str:
    rows = [
        [escape(name), f"{split['utterances']:,}", f"{60 * split['hours']:.1f}"]
        for name, split in data["splits"].items()
    ]
    out = f"<h3>{escape(data['name'])}</h3>{_table(['split', 'utterances', 'minutes'], rows)}"
    reasons = data["quarantined"]
    found = ", ".join(f"{escape(reason)} {count}" for reason, count in reasons.items())
    out += f"<p>{data['words']:,} words. Quarantined: {found or 'nothing'}."
    if score := data.get("wer"):
        out += (
            f" Word error of the ASR against the transcripts: {_percent(score['wer'])} "
            f"({score['n']} utterances, {score['words']:,} words)."
        )
    licences = escape("; ".join(data["licences"]) or "none stated")
    return f'{out}</p><p class="protocol">Licences: {licences}</p>'


def _config(run: Path) -> str:
    path = run / "config.gin"
    if not path.exists():
        return _missing("No config.gin")
    text = escape(path.read_text(encoding="utf-8"))
    return _folded("config.gin, resolved", f"<pre>{text}</pre>")


def _versions() -> str:
    rows = [["python", platform.python_version()]]
    rows += [[name, metadata.version(name)] for name in _PACKAGES]
    device = jax.devices()[0]
    kind = f"{jax.device_count()} × {escape(device.device_kind)} ({device.platform})"
    rows.append(["device", kind])
    rows.append(["host", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"])
    return _folded("Versions", _table(["", ""], rows))


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _card(inner: str) -> str:
    return f'<div class="card">{inner}</div>'


def _folded(title: str, inner: str) -> str:
    return f'<details class="card"><summary>{title}</summary>{inner}</details>'


def _missing(what: str) -> str:
    return f'<p class="none">{what}.</p>'


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
