"""What each choice in the TASTE tokenizer is worth, after equally many steps on the same data.

    for variant in "default" "RVQ 4 x 64" ...; do
      python benchmarks/taste_ablation.py runs/ablation --variants "$variant" &
    done; wait

Every variant trains its stages on speech (text, latent, quantized; not the vocoder) with the same
batches. Side by side they share a device alike, so that their seconds can be compared. Then each
encodes held-out utterances and is asked for their words' durations, and for their frames at the
aligned durations, from codes alone. Frames are predicted freely, without the real ones (an
autoregressive decoder hears its own). The aligner is each variant's own. A variant by tokens has
one item of codes for each Whisper token of a word instead of one a word; its words are judged all
the same. Results are appended to RUN/ablation.jsonl, and a variant that stands there is not trained
again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import fetch
from slm_jax.audio.decode import load
from slm_jax.data.registry import get
from slm_jax.evaluation.run import held_out_records
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.taste_listen import Listener
from slm_jax.tokenizers.taste_network import TasteConfig, TasteNetwork
from slm_jax.tokenizers.taste_prosody import is_spoken
from slm_jax.tokenizers.taste_text import read_dictionary
from slm_jax.tokenizers.vocoder import normalise_mel, normalise_pitch
from slm_jax.training.fit import FitConfig
from slm_jax.training.spelling import Lines
from slm_jax.training.taste_examples import Example, collate, make_examples
from slm_jax.training.taste_losses import heard_words
from slm_jax.training.taste_stages import TasteTraining, train_tokenizer


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model, and what it hears: phones of the words or letters alone, codes a word or a token."""

    config: TasteConfig = TasteConfig()
    phones: bool = True
    by_token: bool = False


BASE = TasteConfig()
MIXED = (1, 2, 3)  # encoder layers of which the values are mixed
VARIANTS = {
    "default": Variant(),
    "letters": Variant(phones=False),
    "by token": Variant(by_token=True),
    "without word prosody": Variant(dataclasses.replace(BASE, prosody=False)),
    "RVQ 4 x 64": Variant(dataclasses.replace(BASE, quantizer="rvq")),
    "RVQ, without word prosody": Variant(dataclasses.replace(BASE, quantizer="rvq", prosody=False)),
    "values mixed of layers 1 to 3": Variant(dataclasses.replace(BASE, value_layers=MIXED)),
    "last token of a word": Variant(dataclasses.replace(BASE, pooling="last")),
    "autoregressive decoder": Variant(
        dataclasses.replace(BASE, decoder=dataclasses.replace(BASE.decoder, autoregressive=True))
    ),
}
SHARES = (0.2, 0.05, 0.75)  # of the steps: text, latent, quantized
LONGEST = 320  # frames of an utterance; few shapes compile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder for checkpoints and results")
    parser.add_argument("--datasets", nargs="+", default=["prompts"], metavar="NAME")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    args.run.mkdir(parents=True, exist_ok=True)
    results = args.run / "ablation.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = [json.loads(line)["variant"] for line in lines]
    for name in args.variants:
        if name in done:
            continue
        variant = VARIANTS[name]
        corpus = listen(variant, args.datasets)
        folder = args.run / name.replace(" ", "_").replace(",", "")
        steps = [max(1, int(share * args.steps)) for share in SHARES]
        training = TasteTraining(
            FitConfig(1), *(FitConfig(n, 100, n) for n in steps), batch=args.batch
        )
        found = {"variant": name, **run(folder, variant.config, *corpus, training)}
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)


class Judged(NamedTuple):
    """A held-out utterance, and the word of each of its items."""

    example: Example
    words: np.ndarray


def listen(
    variant: Variant, datasets: Sequence[str]
) -> tuple[Listener, list[Example], list[Judged]]:
    """Training and held-out examples of at most LONGEST frames, the same of every variant."""
    config = variant.config
    listener = Listener(fetch.whisper_tiny_en(), config.value_layers, config.vocoder.mel)
    pronunciations = read_dictionary(fetch.locate("pronunciations")) if variant.phones else {}
    families, splits = ["words", "audio"], []
    opened = [get(name).open(tuple(families)) for name in datasets]
    train = [r for one in opened for r in one.split("train", families)]
    held = [r for one in opened for r in held_out_records(one, families)]
    for records in (train, held):
        audios = [load(record["audio"].flac) for record in records]
        words = [record["words"].words for record in records]
        made = make_examples(listener, audios, words, pronunciations)
        fit = [one for one in made if one.frames <= LONGEST and _tokens(one) <= LONGEST // 12]
        splits.append([itemise(listener, one, variant.by_token) for one in fit])
    train_split, held_split = splits
    return listener, [judged.example for judged in train_split], held_split


def _tokens(example: Example) -> int:
    return int(np.sum(example.heard.token_words >= 0))


def itemise(listener: Listener, example: Example, by_token: bool) -> Judged:
    """One item a word as it is, or one a token: a word's symbols are divided among its tokens in
    proportion to the tokens' letters."""
    heard = example.heard
    if not by_token:
        return Judged(example, np.arange(example.words))
    spoken = heard.token_words >= 0
    owner = heard.token_words[spoken]
    letters = np.array([len(listener.text.decode([int(i)]).strip()) for i in heard.tokens[spoken]])
    index = np.zeros_like(heard.text.words)
    for word in range(example.words):
        items, symbols = np.flatnonzero(owner == word), np.flatnonzero(heard.text.words == word)
        ends = np.cumsum(np.maximum(letters[items], 1))
        part = np.searchsorted(ends / ends[-1], (np.arange(len(symbols)) + 0.5) / len(symbols))
        index[symbols] = items[part]
    token_words = np.full_like(heard.token_words, -1)
    token_words[spoken] = np.arange(len(owner))
    text = heard.text._replace(words=index)
    return Judged(
        Example(heard._replace(text=text, token_words=token_words), len(owner), example.audio),
        owner,
    )


def run(
    folder: Path,
    config: TasteConfig,
    listener: Listener,
    train: list[Example],
    held: list[Judged],
    training: TasteTraining,
) -> dict[str, float]:
    """Trains and scores. The seconds are those of the last stage's second half, so without
    compilation."""
    network = TasteNetwork(config, listener.config)
    vocoder = network.init(0)["vocoder"]
    lines = Lines({"a": ("AH",)}, [], 0)
    params = train_tokenizer(folder, train, [], lines, listener, vocoder, config, training)
    logged = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    rates = [line["steps_per_second"] for line in logged if line["stage"] == "quantized"]
    seconds = float(np.median([1 / rate for rate in rates[len(rates) // 2 :]]))
    return {"step_seconds": seconds, **score(network, params, held, listener)}


def score(
    network: TasteNetwork, params: dict, held: list[Judged], listener: Listener
) -> dict[str, float]:
    """Bits of codes a second, share of words within 50 ms, mel error (normalised), pitch error
    (semitones)."""

    @jax.jit
    def judge(params, batch, belongs):
        latents, durations, hidden, _ = heard_words(network, params, batch)
        mask = batch["word_mask"]
        q = network.quantize(params, latents, mask, len(network.config.vocab))
        decoder = network.part(params, "decoder")
        heard = q.latents * mask[..., None]
        hidden, log_durations = decoder.tell(hidden, batch["ids"], batch["words"], heard)
        mel, hertz, _ = decoder.sound(hidden, durations, batch["mel"].shape[1])
        own = jax.nn.one_hot(batch["words"], mask.shape[1]) @ belongs
        own *= is_spoken(batch["ids"])[..., None]
        mask = belongs.any(1).astype(mel.dtype)
        said = jnp.einsum("bn,bnw->bw", jnp.exp(log_durations), own)
        true = jnp.einsum("bn,bnw->bw", durations.astype(said.dtype), own)
        inside = jnp.arange(batch["mel"].shape[1])[None] < batch["frames"][:, None]
        voiced = batch["voiced"] * inside
        tone = jnp.abs(normalise_pitch(hertz) - batch["pitch"]) * voiced
        return {
            "durations": (jnp.sum((jnp.abs(said - true) <= 0.05 / frame) * mask), jnp.sum(mask)),
            "mel": (
                jnp.sum(jnp.mean(jnp.abs(normalise_mel(mel) - batch["mel"]), -1) * inside),
                jnp.sum(inside),
            ),
            "pitch": (jnp.sum(tone) * 0.5 * 12 / jnp.log(2.0), jnp.sum(voiced)),
        }

    frame = listener.mel.hop / listener.mel.rate
    totals = {name: np.zeros(2) for name in ("durations", "mel", "pitch")}
    order = sorted(held, key=lambda one: one.example.frames)
    items = frames = 0
    for start in range(0, len(order) - 7, 8):
        chunk = order[start : start + 8]
        batch = collate([one.example for one in chunk], listener)
        belongs = np.zeros((8, *[batch["word_mask"].shape[1]] * 2), np.float32)
        for row, one in enumerate(chunk):
            belongs[row, np.arange(len(one.words)), one.words] = 1
            items, frames = items + len(one.words), frames + one.example.frames
        for name, pair in judge(params, batch, belongs).items():
            totals[name] += np.asarray(pair)
    within, mel, pitch = (float(total[0] / total[1]) for total in totals.values())
    bits = sum(np.log2(size) for size in network.config.vocab) * items / (frames * frame)
    return {
        "words": int(totals["durations"][1]),
        "bits_per_second": float(bits),
        "within_50_ms": within,
        "mel_error": mel,
        "pitch_error_semitones": pitch,
    }


if __name__ == "__main__":
    main()
