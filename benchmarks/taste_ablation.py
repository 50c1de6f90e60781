"""What each choice in the TASTE tokenizer is worth, at equal training cost.

    python benchmarks/taste_ablation.py runs/ablation --datasets prompts joe --seconds 240

Every variant trains its stages on speech (text, latent, quantized; not the vocoder) for the same
processor time: a step is timed first, and the number of steps follows. Then it encodes held-out
utterances and is asked for their words' durations, and for their frames at the aligned durations,
from codes alone. Frames are predicted freely, without the real ones (an autoregressive decoder
hears its own). The aligner is each variant's own. Results are appended to RUN/ablation.jsonl, and a
variant that stands there is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines import fetch
from slm_jax.audio.decode import load
from slm_jax.data.registry import get
from slm_jax.evaluation.run import held_out_records
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.taste_encoder import start_from_whisper
from slm_jax.tokenizers.taste_listen import Listener
from slm_jax.tokenizers.taste_network import TasteConfig, TasteNetwork
from slm_jax.tokenizers.taste_prosody import is_spoken
from slm_jax.tokenizers.vocoder import normalise_mel, normalise_pitch
from slm_jax.training.fit import FitConfig
from slm_jax.training.spelling import Lines
from slm_jax.training.taste_examples import Example, batches, collate, make_examples
from slm_jax.training.taste_losses import heard_words
from slm_jax.training.taste_stages import TRAINED, TasteTraining, make_step, train_tokenizer

BASE = TasteConfig()
MIXED = (1, 2, 3)  # encoder layers of which the values are mixed
VARIANTS = {
    "default": BASE,
    "without word prosody": dataclasses.replace(BASE, prosody=False),
    "RVQ 4 x 64": dataclasses.replace(BASE, quantizer="rvq"),
    "RVQ, without word prosody": dataclasses.replace(BASE, quantizer="rvq", prosody=False),
    "values mixed of layers 1 to 3": dataclasses.replace(BASE, value_layers=MIXED),
    "last token of a word": dataclasses.replace(BASE, pooling="last"),
    "autoregressive decoder": dataclasses.replace(
        BASE, decoder=dataclasses.replace(BASE.decoder, autoregressive=True)
    ),
}
SHARES = (0.2, 0.05, 0.75)  # of the steps: text, latent, quantized
LONGEST = 320  # frames of an utterance; few shapes compile
_TIMED = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder for checkpoints and results")
    parser.add_argument("--datasets", nargs="+", default=["prompts"], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=240, help="processor time of a variant")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    args.run.mkdir(parents=True, exist_ok=True)
    results = args.run / "ablation.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = [json.loads(line)["variant"] for line in lines]
    heard: dict[tuple[int, ...], tuple[Listener, list[Example], list[Example]]] = {}
    for name in args.variants:
        if name in done:
            continue
        config = VARIANTS[name]
        if config.value_layers not in heard:
            heard[config.value_layers] = listen(config, args.datasets)
        folder = args.run / name.replace(" ", "_").replace(",", "")
        found = {"variant": name, **run(folder, config, *heard[config.value_layers], args.seconds)}
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)


def listen(
    config: TasteConfig, datasets: Sequence[str]
) -> tuple[Listener, list[Example], list[Example]]:
    """Training and held-out examples of at most LONGEST frames."""
    listener = Listener(fetch.whisper_tiny_en(), config.value_layers, config.vocoder.mel)
    families, splits = ["words", "audio"], []
    opened = [get(name).open(tuple(families)) for name in datasets]
    train = [r for one in opened for r in one.split("train", families)]
    held = [r for one in opened for r in held_out_records(one, families)]
    for records in (train, held):
        audios = [load(record["audio"].flac) for record in records]
        made = make_examples(listener, audios, [record["words"].words for record in records])
        splits.append([example for example in made if example.frames <= LONGEST])
    return listener, *splits


def run(
    folder: Path,
    config: TasteConfig,
    listener: Listener,
    train: list[Example],
    held: list[Example],
    seconds: float,
) -> dict[str, float]:
    """Trains for as many steps as `seconds` of processor time pay for, and scores."""
    text, told = step_seconds(config, listener, train)
    steps = int(seconds / (SHARES[0] * text + (1 - SHARES[0]) * told))
    schedule = [FitConfig(max(1, int(share * steps)), 100, steps) for share in SHARES]
    training = TasteTraining(FitConfig(1, 1, 1), *schedule)
    network = TasteNetwork(config, listener.config)
    vocoder = network.init(0)["vocoder"]
    lines = Lines({"a": ("AH",)}, [], 0)
    params = train_tokenizer(folder, train, lines, listener, vocoder, config, training)
    return {"steps": steps, "step_seconds": told, **score(network, params, held, listener)}


def step_seconds(
    config: TasteConfig, listener: Listener, examples: list[Example]
) -> tuple[float, float]:
    """Processor seconds of one step without and with codes, compiled."""
    network, training = TasteNetwork(config, listener.config), TasteTraining()
    params = network.init(0)
    params["aggregator"] = start_from_whisper(
        params["aggregator"], listener.decoder, config.aggregator_layers
    )
    optimizer = optax.adam(1e-4)
    trained = {name: params[name] for name in TRAINED}
    feed = batches(examples, listener, training.batch, 0, 0)
    some = [next(feed) for _ in range(_TIMED)]
    costs = []
    for codes in (False, True):
        state = {
            "params": trained,
            "opt": optimizer.init(trained),
            "quantizer": params["quantizer"],
        }
        step = make_step(network, optimizer, training, told=codes)
        for repeat in range(2):  # the first compiles
            began = time.process_time()
            for batch in some:
                state, _ = step(state, (batch, np.float32(codes)), jax.random.key(repeat))
            jax.block_until_ready(state)
        costs.append((time.process_time() - began) / len(some))
    return costs[0], costs[1]


def score(
    network: TasteNetwork, params: dict, held: list[Example], listener: Listener
) -> dict[str, float]:
    """Share of words within 50 ms, mel error (normalised), pitch error (semitones)."""

    @jax.jit
    def judge(params, batch):
        latents, durations, hidden, _ = heard_words(network, params, batch)
        mask = batch["word_mask"]
        q = network.quantize(params, latents, mask, len(network.config.vocab))
        decoder = network.part(params, "decoder")
        heard = q.latents * mask[..., None]
        hidden, log_durations = decoder.tell(hidden, batch["ids"], batch["words"], heard)
        mel, hertz, _ = decoder.sound(hidden, durations, batch["mel"].shape[1])
        own = jax.nn.one_hot(batch["words"], mask.shape[1]) * is_spoken(batch["ids"])[..., None]
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
    order = sorted(held, key=lambda example: example.frames)
    for start in range(0, len(order) - 7, 8):
        for name, pair in judge(params, collate(order[start : start + 8], listener)).items():
            totals[name] += np.asarray(pair)
    within, mel, pitch = (float(total[0] / total[1]) for total in totals.values())
    return {
        "words": int(totals["durations"][1]),
        "within_50_ms": within,
        "mel_error": mel,
        "pitch_error_semitones": pitch,
    }


if __name__ == "__main__":
    main()
