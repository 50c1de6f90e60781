"""Everything that is measured on one trained system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.audio.decode import load, write_wav
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS, Record
from slm_jax.evaluation import wer
from slm_jax.evaluation.compare import budget, facts, speak
from slm_jax.evaluation.compare.job import CompareJob
from slm_jax.evaluation.compare.scores import Scorer, pair_accuracy
from slm_jax.evaluation.compare.voices import Voices, audible
from slm_jax.layouts import Nar
from slm_jax.nn import tree
from slm_jax.training.job import TrainJob

PROTOCOL = (
    "compare-1: systems of one size are trained from random weights on the same shards for equal "
    "operations (matrix products of the loss and its gradient, counted in the program: whole "
    "squares of attention and padding included). All figures are of held-out utterances no longer "
    "than CompareJob.max_seconds. Loss: nats of the items of speech, teacher-forced and without "
    "chance in the layout, by item, times the items a second that the streams have; special ids "
    "are not counted. Losses compare only among systems that say the same streams, and there a "
    "system that reads the text has less left to tell. Pair accuracy: from a word's start near the "
    "middle on, a false twin has the speech of another held-out utterance, while the text stays; "
    "the share of pairs in which the mean log-likelihood of the predicted items of speech (of the "
    "text, for systems that only listen) is higher for the true one; intervals are 95 %, by "
    "bootstrap over utterances. First audio: columns that are read before the first item of the "
    "speech is known in all levels, times the time of a column when one utterance is decoded by "
    "itself (tokenizers excluded; all columns at once where a layout predicts so). Word error ("
    + wer.PROTOCOL
    + ", by Whisper tiny.en): the text is given, and the length of the speech; codes are sampled, "
    "and spoken by their tokenizer's decoder."
)


def score(
    trained: TrainJob,
    params: tree.Params,
    records: Sequence[Record],
    false: Sequence[tuple[int, Record]],
) -> dict[str, Any]:
    """Figures that need no decoding.

    Args:
      trained: the run.
      params: of the model.
      records: held-out.
      false: of `twins.twins`.
    """
    layout = trained.system.layout
    families = (*layout.families, WORDS)
    own = [{name: item for name, item in r.items() if name in families} for r in records]
    total, bare = budget.parameters(params, facts.text_ids(layout))
    found: dict[str, Any] = {
        "parameters": total,
        "parameters_without_text": bare,
        "group": facts.group(layout, own),
        "text": " and ".join(facts.texts(layout)),
        **facts.counts(layout, own),
    }
    scorer = Scorer(trained.system, params, trained.seq_len)
    speech, text = scorer.speech(own), scorer.text(own)
    seconds = sum(record[WORDS].duration for record in own)
    if speech.targets.sum():
        if not facts.says_vectors(layout):
            each = speech.total.sum() / speech.targets.sum()
            found["speech_nats"] = each * facts.items_per_second(layout, own)
        firsts = [facts.latency(layout, record) for record in own]
        found["first_columns"] = float(np.median([n for n in firsts if n is not None]))
    if text.targets.sum():
        found["text_nats"] = text.total.sum() / seconds
    places = [place for place, _ in false]
    twins = [one for _, one in false]
    judge = scorer.speech if speech.targets.sum() else scorer.text
    if facts.said(layout) or any(not facts.is_text(s) for s in layout.streams):
        true = speech if speech.targets.sum() else text
        figure = pair_accuracy(true, judge(twins), places, len(own))
        found["pairs"] = figure and figure.to_json()
    return {name: _plain(value) for name, value in found.items()}


def spoken(
    job: CompareJob,
    trained: TrainJob,
    model: Any,
    records: Sequence[Record],
    voices: Voices,
    clips: Path,
) -> dict[str, Any]:
    """Decodes some held-out texts, and hears what comes out of it.

    Args:
      job: what is compared.
      trained: the run.
      model: of it.
      records: to be said.
      voices: what makes sound of codes.
      clips: folder for the sounds.
    """
    layout = trained.system.layout
    why = voices.mute(layout, records[0])
    decoded = speak.decode(
        model,
        layout,
        records[:1] if why else records,
        job.sampling,
        trained.seq_len,
        lambda: (voices.taste, voices.text),
        job.seed,
    )
    found: dict[str, Any] = {
        "columns_decoded_per_second": decoded.columns / decoded.seconds,
        "speech_per_second": records[0][WORDS].duration / decoded.seconds,
        "column_ms": 1000 * decoded.seconds / (decoded.columns if layout.shift else 1),
    }
    if why:
        return found | {"mute": why}
    if layout.holds(Nar):
        found["given"] = "level 0 is the recording's own: the word error is of the finer levels"
    family = audible(layout)
    [said] = [s for s in facts.said(layout) if s.family == family][-1:]
    codes = [streams.get(family, np.zeros((0, 1), np.int32)) for streams in decoded.streams]
    audios = voices.speak(family, codes, records, not said.dedup)
    heard = voices.hear([audio if len(audio) else np.zeros(1600, np.float32) for audio in audios])
    texts = [record[WORDS].text for record in records]
    found["wer"] = wer.word_error_rate(texts, heard).to_json()
    found["clips"] = _keep(clips, records, audios, heard)
    return found


def ceilings(records: Sequence[Record], voices: Voices) -> dict[str, Any]:
    """Word error of the recordings, and of their own codes spoken: what no system can undercut."""
    texts = [record[WORDS].text for record in records]
    families = ["codec", "taste"]
    families += [family for family in ("units", "latents") if getattr(voices, family)]
    sounds = {"recordings": [load(record[AUDIO].flac) for record in records]}
    for family in families:
        codes = [record[family].values for record in records]
        sounds[family] = voices.speak(family, codes, records, True)
    return {
        name: wer.word_error_rate(texts, voices.hear(audios)).to_json()
        for name, audios in sounds.items()
    }


def prompts(records: Sequence[Record], count: int) -> list[Record]:
    """Held-out utterances to be said: the first ones of at least four words."""
    return [record for record in records if len(record[WORDS].words) >= 4][:count]


def _keep(
    folder: Path, records: Sequence[Record], audios: Sequence[np.ndarray], heard: Sequence[str]
) -> list[dict[str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for number, (record, audio, words) in enumerate(zip(records, audios, heard, strict=True)):
        if len(audio):
            file = folder / f"{number}.wav"
            write_wav(file, audio, AUDIO_RATE)
            clip = {"file": str(file), "text": record[WORDS].text, "heard": words}
            kept.append({"name": record[WORDS].id} | clip)
    return kept


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
