"""The whole measurement of a TASTE tokenizer, from names and paths: tokenizer.json, .md, clips."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from slm_jax.data import registry
from slm_jax.data.schema import AUDIO, WORDS, Record
from slm_jax.errors import UserError
from slm_jax.evaluation.run import held_out_records
from slm_jax.evaluation.scores import Judges
from slm_jax.evaluation.speakers import SpeakerEncoder
from slm_jax.evaluation.tokenizer import evaluate_tokenizer
from slm_jax.evaluation.verdicts import remembering
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer

VERDICTS = "verdicts.jsonl"


def run_suite(
    taste: Path | None,
    datasets: Sequence[str],
    unheard: Collection[str],
    out: Path,
    *,
    whisper: Path,
    pronunciations: Path,
    speaker_encoder: Path | None,
    text_tokenizer: Path,
    limit: int | None = None,
) -> dict[str, Any]:
    """Measures a tokenizer on the held-out splits of datasets; see `evaluate_tokenizer`.

    Args:
      taste: its folder, None for the starter.
      datasets: names or folders. A dataset of one speaker is one voice, of that name; of several
        speakers, a voice each, "dataset/speaker".
      unheard: datasets or voices that no training stage has heard.
      out: folder for tokenizer.json, tokenizer.md and clips/; made if missing. What judges said is
        kept in its verdicts.jsonl, and not asked again.
      whisper: folder of the Whisper below the tokenizer, which also transcribes.
      pronunciations: that the tokenizer reads by.
      speaker_encoder: the d-vector ONNX file; None where onnxruntime is missing, which is refused.
      text_tokenizer: of the language model, a .gguf file or a folder.
      limit: utterances of each voice at most.

    Returns:
      What stands in tokenizer.json.

    Raises:
      UserError: a dataset, file or package of the extra `eval` is missing, a name in `unheard` is
        none of the datasets or voices, or an utterance is not English.
    """
    # Here, since they need the extra `eval` as soon as they are imported.
    from slm_jax.evaluation.pocket import PocketSphinx
    from slm_jax.evaluation.quality import overall

    sets, new = _held_out(datasets, unheard)
    asr, pocket = Asr(whisper), PocketSphinx()
    judges = Judges(
        transcribe={
            f"{whisper.name}, greedy": lambda audios: [
                heard.text for heard in asr.transcribe(audios, word_times=False)
            ],
            "pocketsphinx": pocket.transcribe,
        },
        align=pocket.align,
        embed=SpeakerEncoder(speaker_encoder),
        quality=overall,
        realign=asr.align,
    )
    return evaluate_tokenizer(
        Taste.load(whisper, pronunciations, taste),
        sets,
        new,
        remembering(judges, Path(out) / VERDICTS),
        TextTokenizer.load(text_tokenizer),
        out=Path(out),
        limit=limit,
    )


def _held_out(
    datasets: Sequence[str], unheard: Collection[str]
) -> tuple[dict[str, list[Record]], set[str]]:
    """Voice -> its utterances, and the voices that are new."""
    if len({Path(name).name for name in datasets}) < len(datasets):
        raise UserError("two datasets have one name", "give each once, in folders named apart")
    sets: dict[str, list[Record]] = {}
    new: set[str] = set()
    for name in datasets:
        opened = registry.get(name).open((WORDS, AUDIO))
        records = held_out_records(opened, [WORDS, AUDIO])
        if not records:
            raise UserError(
                f"dataset {name} has no held-out utterance", "leave it out, or build a larger one"
            )
        short = Path(name).name
        speakers = dict.fromkeys(record[WORDS].speaker for record in records)
        for record in records:
            utterance = record[WORDS]
            if utterance.language != "en":
                raise UserError(
                    f"{name}: {utterance.id} is in {utterance.language!r}, and pocketsphinx knows "
                    "English alone",
                    "leave the dataset out",
                )
            voice = short if len(speakers) == 1 else f"{short}/{utterance.speaker}"
            sets.setdefault(voice, []).append(record)
            if {name, short, voice} & set(unheard):
                new.add(voice)
    known = {*datasets, *(Path(name).name for name in datasets), *sets}
    if unknown := set(unheard) - known:
        raise UserError(
            f"unheard voices that are not measured: {', '.join(sorted(unknown))}",
            f"choose from: {', '.join(sorted(known))}",
        )
    return sets, new
