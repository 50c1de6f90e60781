"""Fetched recordings to judge tokenizers by, in languages of which no dataset can be built here,
since the embedded aligner knows English alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines import corpora, fetch
from data_pipelines.assets import PROMPT_LANGUAGES
from data_pipelines.corpora import Defaults
from data_pipelines.ingest import Limits, load
from data_pipelines.quarantine import Rejected
from slm_jax.data.schema import AUDIO_RATE, Utterance
from slm_jax.errors import UserError
from slm_jax.evaluation.tokenizers.corpus import Corpus

_LIMITS = Limits(min_seconds=1.0, max_seconds=30.0, silence_db=-50.0)


class Source(NamedTuple):
    """How an asset is read: a key of `corpora.READERS`, and what it does not say itself."""

    kind: str
    language: str
    speaker: str


SOURCES: Mapping[str, Source] = {
    "librivox": Source("sphinx", "en", "librivox-austen"),
    **{
        f"prompts_{lang}": Source("asterisk", lang, "") for lang in PROMPT_LANGUAGES if lang != "en"
    },
}


def open_recordings(names: Sequence[str], limit: int | None) -> Corpus:
    """Recordings of assets, each of which is a set of its name; they have no words with times.

    Args:
      names: of `SOURCES`; what is missing is fetched.
      limit: recordings of each at most, drawn with a fixed seed from those of 1 to 30 s.

    Raises:
      UserError: an unknown name, or it cannot be fetched.
    """
    found = Corpus()
    for name in names:
        if name not in SOURCES:
            raise UserError(f"no recordings {name!r}", f"choose from: {', '.join(SOURCES)}")
        kind, language, speaker = SOURCES[name]
        licence = fetch.licence(name)
        listed, _ = corpora.read(kind, fetch.locate(name), Defaults(language, speaker, licence))
        left = limit if limit is not None else len(listed)
        for index in np.random.default_rng(0).permutation(len(listed)):
            if not left:
                break
            source = listed[index]
            audio = load(source, _LIMITS, "auto")
            if isinstance(audio, Rejected):
                continue
            left -= 1
            seconds = len(audio) / AUDIO_RATE
            told = (language, source.speaker, seconds, source.source, source.text or "")
            found.add(name, Utterance(source.id, (), *told), audio)
        found.licences[name] = licence
    return found
