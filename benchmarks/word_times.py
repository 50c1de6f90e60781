"""Word times of forced alignment against pocketsphinx, an aligner not related to Whisper.

    pip install pocketsphinx && python benchmarks/word_times.py --prompts 160

Prints the errors of word starts and ends with and without the correction of the attention's lag.
Prompts with a word that pocketsphinx's dictionary lacks are left out.
"""

import argparse
import re

import numpy as np
import pocketsphinx

from data_pipelines import corpora, fetch
from slm_jax.audio.decode import load
from slm_jax.tokenizers import alignment
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.segmenters import segmenter_for

RATE = 16_000
SILENCE = 0.3  # seconds put around each prompt: pocketsphinx wants some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=160, help="evenly spaced over all of them")
    args = parser.parse_args()

    listed, _ = corpora.read("asterisk", fetch.prompts("en"), corpora.Defaults())
    chosen = [listed[i] for i in np.linspace(0, len(listed) - 1, args.prompts).astype(int)]
    decoder = pocketsphinx.Decoder(lm=None, samprate=RATE, loglevel="FATAL")
    audios, texts, references = [], [], []
    for utterance in chosen:
        audio = load(utterance.audio)
        words = segmenter_for("en").split(utterance.text)
        reference = sphinx_times(decoder, audio, words)
        if len(reference) == len(words) > 1:
            audios.append(audio)
            texts.append(utterance.text)
            references.append(reference)

    asr = Asr(fetch.whisper_tiny_en())
    reference = np.concatenate(references)
    print(f"{len(audios)} prompts, {len(reference)} words")
    for lag in (0.0, alignment.LAG):
        alignment.LAG = lag
        placed = [(w.start, w.end) for t in asr.align(audios, texts) for w in t.words]
        for name, error in zip(("start", "end"), (np.array(placed) - reference).T, strict=True):
            print(
                f"lag {lag:.2f} s, word {name:5s}: median error {np.median(error) * 1e3:4.0f} ms, "
                f"median absolute {np.median(abs(error)) * 1e3:4.0f} ms, "
                f"above 100 ms {np.mean(abs(error) > 0.1):5.1%}, "
                f"above 200 ms {np.mean(abs(error) > 0.2):5.1%}"
            )


def sphinx_times(
    decoder: pocketsphinx.Decoder, audio: np.ndarray, words: list[str]
) -> list[tuple[float, float]]:
    """(start, end) in seconds of each word; nothing when pocketsphinx cannot align them."""
    spelled = [re.sub(r"[^a-z']", "", word.lower()) for word in words]
    if not all(word and decoder.lookup_word(word) for word in spelled):
        return []
    margin = np.zeros(int(SILENCE * RATE), np.float32)
    padded = np.concatenate([margin, audio, margin])
    padded += np.random.default_rng(0).normal(size=len(padded)) * 1e-4  # it dislikes digital zero
    decoder.set_align_text(" ".join(spelled))
    decoder.start_utt()
    decoder.process_raw((padded * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    return [
        (segment.start_frame / 100 - SILENCE, (segment.end_frame + 1) / 100 - SILENCE)
        for segment in decoder.seg() or ()
        if segment.word[0] not in "<[("
    ]


if __name__ == "__main__":
    main()
