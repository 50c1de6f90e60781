"""Our Whisper against faster-whisper on the same weights and the real prompts.

    python benchmarks/asr_wer.py --prompts 120

Prints word error rates against the prompts' transcripts and against each other, real-time factors
and their ratio, and how far word times move when alignment pads to a bucket instead of 30 s.
Blocks of prompts alternate between the systems, so that whatever else the machine does slows both.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import faster_whisper
import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

from data_pipelines import corpora, fetch
from slm_jax.audio.decode import load
from slm_jax.tokenizers.asr import BUCKETS, TAIL, Asr

RATE = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=120, help="evenly spaced over all of them")
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()

    folder = fetch.whisper_tiny_en()
    listed, _ = corpora.read("asterisk", fetch.prompts("en"), corpora.Defaults())
    normalise = EnglishTextNormalizer()
    spoken = [u for u in listed if u.text and normalise(u.text)]
    chosen = [spoken[i] for i in np.linspace(0, len(spoken) - 1, args.prompts).astype(int)]
    audios, texts = [load(u.audio) for u in chosen], [u.text for u in chosen]
    seconds = sum(map(len, audios)) / RATE

    asr = Asr(folder, args.batch_size)
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="float32")

    def ours(context: str) -> Callable[[list], list[str]]:
        return lambda block: [t.text for t in asr.transcribe(block, "en", context, False)]

    systems = {
        "slm_jax, 30 s": ours("full"),
        "slm_jax, bucket": ours("bucket"),
        "faster-whisper": lambda block: [greedy(model, audio) for audio in block],
    }
    heard, spent = run(systems, audios, args.batch_size)

    reference = [normalise(text) for text in texts]
    print(
        f"{len(chosen)} prompts, {seconds / 60:.1f} min, {len(' '.join(reference).split())} words"
    )
    theirs = [normalise(text) for text in heard["faster-whisper"]]
    for name, said in heard.items():
        said = [normalise(text) for text in said]
        print(
            f"{name:16s} WER {wer(reference, said):6.2%}"
            f"  against faster-whisper {wer(theirs, said):6.2%}"
            f"  real-time factor {spent[name] / seconds:.3f}"
            f"  time / faster-whisper {spent[name] / spent['faster-whisper']:.2f}"
        )
    compare_contexts(asr, audios, texts)


def greedy(model: faster_whisper.WhisperModel, audio: np.ndarray) -> str:
    segments, _ = model.transcribe(
        audio,
        language="en",
        beam_size=1,
        temperature=0.0,
        without_timestamps=True,
        condition_on_previous_text=False,
        vad_filter=False,
        no_speech_threshold=None,
    )
    return "".join(segment.text for segment in segments)


def run(
    systems: dict[str, Callable[[list], list[str]]], audios: list[np.ndarray], batch_size: int
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """What each system heard, and the seconds it took without compilation."""
    blocks = batches(audios, batch_size)
    heard = {name: [""] * len(audios) for name in systems}
    spent = dict.fromkeys(systems, 0.0)
    shapes = {}  # one block for each that is compiled
    for bucket, indices in blocks:
        shapes[bucket, (len(indices) - 1).bit_length()] = indices
    for indices, transcribe in itertools.product(shapes.values(), systems.values()):
        transcribe([audios[i] for i in indices])
    for (_, indices), (name, transcribe) in itertools.product(blocks, systems.items()):
        start = time.perf_counter()
        for i, text in zip(indices, transcribe([audios[i] for i in indices]), strict=True):
            heard[name][i] = text
        spent[name] += time.perf_counter() - start
    return heard, spent


def batches(audios: list[np.ndarray], batch_size: int) -> list[tuple[int, list[int]]]:
    """Indices of like length, with the samples that they are padded to."""
    by_bucket: dict[int, list[int]] = {}
    for i in sorted(range(len(audios)), key=lambda i: len(audios[i])):
        bucket = next((n for n in BUCKETS if n >= len(audios[i]) + TAIL), BUCKETS[-1])
        by_bucket.setdefault(bucket, []).append(i)
    return [
        (bucket, indices[at : at + batch_size])
        for bucket, indices in by_bucket.items()
        for at in range(0, len(indices), batch_size)
    ]


def wer(reference: list[str], said: list[str]) -> float:
    """Of all words together; utterances without reference words are left out (jiwer wants some)."""
    pairs = [(r, s) for r, s in zip(reference, said, strict=True) if r]
    return jiwer.wer(*map(list, zip(*pairs, strict=True)))


def compare_contexts(asr: Asr, audios: list[np.ndarray], texts: list[str]) -> None:
    placed, spent = {}, {}
    for context in ("full", "bucket"):
        asr.align(audios[:1], texts[:1], context=context)
        start = time.perf_counter()
        placed[context] = [w for t in asr.align(audios, texts, context=context) for w in t.words]
        spent[context] = time.perf_counter() - start
    moved = [
        abs(one.start - other.start)
        for one, other in zip(placed["full"], placed["bucket"], strict=True)
    ]
    print(
        f"alignment, bucket against 30 s: word starts move by {np.median(moved) * 1e3:.0f} ms in "
        f"the median, {np.percentile(moved, 95) * 1e3:.0f} ms at the 95th percentile "
        f"({len(moved)} words), in {spent['bucket'] / spent['full']:.2f} of the time"
    )


if __name__ == "__main__":
    main()
