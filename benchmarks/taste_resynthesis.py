"""Scores the TASTE tokenizer on held-out speech: what the model card quotes.

    python benchmarks/taste_resynthesis.py --out slm_jax/weights/taste/metrics.json

For each utterance of the validation and test splits: the original, the vocoder alone, words without
prosody (every word gets the commonest code of each level), and the reconstruction from words,
codes and speaker vector. WER by Whisper tiny.en (greedy, our implementation) and, where
installed, by faster-whisper (beam 5); DNSMOS where `speechmos` is installed; the share of words
whose duration is within 50 ms of the original's, both measured by the same aligner (Whisper
cross-attention, the one that also made the training's alignments, so not an independent judge).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

import jax
import numpy as np

from data_pipelines import fetch
from slm_jax.audio.decode import load
from slm_jax.data.dataset import open_dataset
from slm_jax.evaluation.run import judges
from slm_jax.evaluation.token_statistics import token_statistics
from slm_jax.evaluation.wer import word_error_rate
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.taste import RATE, Taste

SPLITS = ("validation", "test")


def most_frequent(codes) -> np.ndarray:
    """The commonest code of each level, int32 [K]."""
    flat = np.concatenate(codes)
    return np.array([np.bincount(level).argmax() for level in flat.T], np.int32)


def within(asr: Asr, original, other, texts, limit: float = 0.05) -> float:
    """Share of words whose aligned duration changes by at most `limit` seconds."""
    close = total = 0
    pairs = zip(asr.align(original, texts), asr.align(other, texts), strict=True)
    for a, b in pairs:
        for x, y in zip(a.words, b.words, strict=True):
            close += abs((x.end - x.start) - (y.end - y.start)) <= limit + 1e-6
            total += 1
    return close / total


def dnsmos(audios) -> float | None:
    """Mean DNSMOS overall, None where the package is missing."""
    if not importlib.util.find_spec("speechmos"):
        return None
    from speechmos import dnsmos as scorer

    scores = [scorer.run(np.clip(a, -1, 1), RATE)["ovrl_mos"] for a in audios if len(a) > RATE]
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="prompts", help="name or folder")
    parser.add_argument("--taste", default=None, help="tokenizer folder, default the starter")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--clips", type=Path, default=None, help="folder for WAV files")
    args = parser.parse_args()

    whisper = fetch.whisper_tiny_en()
    taste = Taste.load(whisper, args.taste)
    dataset = open_dataset(cache_dir() / "datasets" / args.dataset)
    splits = [dataset.split(s, ("words", "audio")) for s in SPLITS]
    records = [split[i] for split in splits for i in range(len(split))]
    records = [r for r in records if r["words"].words]
    audios = [load(r["audio"].flac) for r in records]
    words = [r["words"].words for r in records]
    texts = [r["words"].text for r in records]
    spoken = [[w.text for w in row] for row in words]

    codes, speakers = taste.encode(audios, words)
    seconds = sum(map(len, audios)) / RATE
    taste.decode(spoken, codes, speakers)
    began = time.perf_counter()
    taste.encode(audios, words)
    encoding = (time.perf_counter() - began) / seconds
    began = time.perf_counter()
    rebuilt, _ = taste.decode(spoken, codes, speakers)
    decoding = (time.perf_counter() - began) / seconds
    common = [np.tile(most_frequent(codes), (len(row), 1)) for row in spoken]
    plain, _ = taste.decode(spoken, common, speakers)
    systems = {
        "original": audios,
        "vocoder alone": [taste.vocode(a) for a in audios],
        "words and speaker, one code for all": plain,
        "TASTE": rebuilt,
    }
    listeners = judges(whisper, "en")
    asr = Asr(whisper)
    statistics = token_statistics(codes, taste.spec.vocab, seconds)
    result = {
        "dataset": args.dataset,
        "utterances": len(records),
        "seconds": round(seconds, 1),
        "code_bits_per_second": round(statistics["bits_per_second"], 1),
        "code_entropy_bits_per_second": round(statistics["entropy_bits_per_second"], 1),
        "text_bits_per_second": round(sum(8 * len(t.encode()) for t in texts) / seconds, 1),
        "codes_used": [level["used"] for level in statistics["levels"]],
        "code_perplexity": [round(level["perplexity"], 1) for level in statistics["levels"]],
        "encode_seconds_per_second": round(encoding, 3),
        "decode_seconds_per_second": round(decoding, 3),
        "devices": [d.device_kind for d in jax.devices()],
        "systems": {},
    }
    for name, clips in systems.items():
        row = {}
        for judge, listen in listeners.items():
            rate = word_error_rate(texts, listen(clips))
            row[judge] = {k: round(getattr(rate, k), 4) for k in ("wer", "low", "high")}
        if name != "original":
            row["durations_within_50ms"] = round(within(asr, audios, clips, texts), 3)
        row["dnsmos_overall"] = dnsmos(clips)
        result["systems"][name] = row
        print(name, json.dumps(row), flush=True)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    if args.clips:
        from slm_jax.audio.decode import write_wav

        args.clips.mkdir(parents=True, exist_ok=True)
        for i in range(0, len(records), max(1, len(records) // 10)):
            for name, clips in systems.items():
                write_wav(args.clips / f"{i:03d}-{name.split()[0]}.wav", clips[i])


if __name__ == "__main__":
    main()
