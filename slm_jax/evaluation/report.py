"""The report of a run: one HTML file with figures and players inside, made without a network."""

from __future__ import annotations

import contextlib
import datetime
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
from slm_jax.evaluation import figures, page, report_swap, results

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
        ("Swapped words", lambda: report_swap.section(run, measured.get("swap"))),
        ("Use of the codebooks", lambda: _tokens(measured.get("tokens"))),
        ("Data", lambda: _datasets(measured.get("datasets"))),
        ("Configuration", lambda: _config(run)),
        ("Versions", _versions),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>\n{make()}\n</section>" for title, make in sections)
    text = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    fields = {
        "title": escape(f"slm_jax run: {run.resolve().name}"),
        "subtitle": f"Written {datetime.datetime.now():%Y-%m-%d %H:%M}. "
        "Every figure is of held-out utterances unless it says otherwise.",
        "tiles": _tiles(measured, metrics),
        "sections": body,
    }
    for name, value in fields.items():
        text = text.replace("{{" + name + "}}", value)
    path = run / FILE
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
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
        untouched = page.number(text["reference_perplexity"], ".1f")
        tiles.append((f"{text['perplexity']:.1f}", f"text perplexity; untouched LLM {untouched}"))
    for score in measured.get("spoken", {}).get("scores", []):
        if score["clip"] == "continuation" and "wer" in score:
            below = f"word error of spoken continuations, heard by {escape(score['judge'])}"
            tiles.append((page.percent(score["wer"]), below))
    if train := [line for line in metrics if line.get("split", "train") == "train"]:
        rates = [line["tokens_per_second"] for line in train if "tokens_per_second" in line]
        speed = f", {np.median(rates):,.0f} tokens/s" if rates else ""
        tiles.append((f"{train[-1]['step']:,}", f"training steps{speed}"))
    return "".join(f'<div class="tile"><b>{b}</b><span>{span}</span></div>' for b, span in tiles)


def _losses(metrics: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in metrics for name in line["losses"]))
    if not names:
        return page.missing("No losses were logged")
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
        charts.append(page.card(f"<h3>{title}</h3>{chart}"))
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
                    page.percent(level["accuracy"]),
                    f"{level['n']:,}",
                ]
            )
        head = ["level", "speech LM", "95 % interval", "unigram", "P(code | word)"]
        head += ["vs the better", "accuracy", "n"]
        out.append(f"<h3>{escape(name)}: {escape(run['layout'])}</h3>{page.table(head, rows)}")
        out.append(page.protocol(run["protocol"]))
    return page.card("".join(out)) if out else page.missing("The language model was not evaluated")


def _text(run: dict[str, Any] | None) -> str:
    if not run:
        return page.missing("The language model was not evaluated")
    text = run["text"]
    rows = [
        ["this run", f"{text['perplexity']:.2f}", f"{text['cross_entropy']:.3f}", f"{text['n']:,}"],
        [
            "the untouched text LLM, same tokens",
            page.number(text["reference_perplexity"], ".2f"),
            page.number(text["reference_cross_entropy"], ".3f"),
            f"{text['n']:,}",
        ],
    ]
    return page.card(page.table(["model", "perplexity", "cross-entropy (nats)", "tokens"], rows))


def _spoken(run: dict[str, Any] | None) -> str:
    if not run:
        return page.missing("Nothing was spoken")
    rows = []
    for score in run["scores"]:
        figures_ = ["none", "", "0", ""]
        if "wer" in score:
            interval = f"{page.percent(score['low'])} to {page.percent(score['high'])}"
            figures_ = [
                page.percent(score["wer"]),
                interval,
                f"{score['n']}",
                f"{score['words']:,}",
            ]
        rows.append([score["clip"], escape(score["judge"]), *figures_, str(score["failed"])])
    head = ["clip", "heard by", "word error", "95 % interval", "clips", "words", "failed"]
    heard = page.table(head, rows)
    return page.card(heard + _sound(run.get("sound")) + page.protocol(run["protocol"]))


def _sound(found: list[dict[str, Any]] | None) -> str:
    if not found:
        return page.missing("How it sounds was not judged: pip install 'slm_jax[eval]'")
    rows = [
        [
            one["clip"],
            escape(one["figure"]),
            f"{one['value']:.2f}",
            f"{one['low']:.2f} to {one['high']:.2f}",
            str(one["n"]),
        ]
        for one in found
    ]
    return page.table(["clip", "figure", "mean", "95 % interval", "clips"], rows)


def _listen(run: Path, samples: list[dict[str, Any]]) -> str:
    if not samples:
        return page.missing("No clips were made")
    cards = []
    for sample in samples:
        clips = "".join(page.player(run / SAMPLES.parent, clip) for clip in sample["clips"])
        cards.append(page.card(f"<h3>{escape(sample['id'])}</h3>{clips}"))
    note = '<p class="soft">Words that the ASR heard otherwise than written are underlined.</p>'
    return note + "".join(cards)


def _alignments(run: Path, samples: list[dict[str, Any]]) -> str:
    aligned = [sample for sample in samples if sample["clips"][:1]]
    aligned = [sample for sample in aligned if sample["clips"][0]["name"] == "original"][:_PICTURES]
    if not aligned:
        return page.missing("No aligned sample was kept")
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
        out.append(page.card(f"<h3>{escape(sample['id'])}</h3>{picture}"))
    return "".join(out)


def _tokens(stats: dict[str, Any] | None) -> str:
    if not stats:
        return page.missing("No token statistics")
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
    return page.card(page.table(head, rows) + page.protocol(note))


def _datasets(reports: list[dict[str, Any]] | None) -> str:
    if not reports:
        return page.missing("No dataset was described")
    return "".join(page.card(_dataset(report)) for report in reports)


def _dataset(data: dict[str, Any]) -> str:
    rows = [
        [escape(name), f"{split['utterances']:,}", f"{60 * split['hours']:.1f}"]
        for name, split in data["splits"].items()
    ]
    out = f"<h3>{escape(data['name'])}</h3>{page.table(['split', 'utterances', 'minutes'], rows)}"
    reasons = data["quarantined"]
    found = ", ".join(f"{escape(reason)} {count}" for reason, count in reasons.items())
    out += f"<p>{data['words']:,} words. Quarantined: {found or 'nothing'}."
    if score := data.get("wer"):
        out += (
            f" Word error of the ASR against the transcripts: {page.percent(score['wer'])} "
            f"({score['n']} utterances, {score['words']:,} words)."
        )
    licences = "; ".join(data["licences"]) or "none stated"
    return f"{out}</p>" + page.protocol(f"Licences: {licences}")


def _config(run: Path) -> str:
    path = run / "config.gin"
    if not path.exists():
        return page.missing("No config.gin")
    text = escape(path.read_text(encoding="utf-8"))
    return page.folded("config.gin, resolved", f"<pre>{text}</pre>")


def _versions() -> str:
    rows = [["python", platform.python_version()]]
    rows += [[name, metadata.version(name)] for name in _PACKAGES]
    device = jax.devices()[0]
    kind = f"{jax.device_count()} × {escape(device.device_kind)} ({device.platform})"
    rows.append(["device", kind])
    rows.append(["host", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"])
    return page.folded("Versions", page.table(["", ""], rows))
