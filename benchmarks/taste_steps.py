"""What a step of the TASTE tokenizer's stages costs on this device, for each padded length.

    python benchmarks/taste_steps.py --gin_file=taste_tokenizer.gin

Compiles the steps of the spelling, text, quantized and adapt stages, all lengths side by side, and
times each over made-up batches of full size. What it compiled stays in the compilation cache, so
that the training itself, with the same settings, starts at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from data_pipelines import fetch
from slm_jax import config
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.taste_listen import Heard, Listener
from slm_jax.tokenizers.taste_network import TasteNetwork
from slm_jax.tokenizers.taste_text import read_dictionary, read_text
from slm_jax.training import spelling, taste_stages
from slm_jax.training.adversarial import make_adversarial_step
from slm_jax.training.taste_examples import FRAMES, Example, collate, samples
from slm_jax.training.taste_job import TasteJob, make_pair

_TIMED = 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    job, _ = config.from_flags("TasteJob", parser, argv)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    began = time.perf_counter()
    steps = programs(job)
    with ThreadPoolExecutor(len(steps)) as pool:
        compiled = list(pool.map(lambda one: one[1].lower(*one[2]).compile(), steps))
    print(f"{len(steps)} programs compiled in {time.perf_counter() - began:.0f} s", flush=True)
    print(f"| step on {jax.devices()[0].device_kind} | steps/s |\n|---|---|")
    for (name, _, (state, batch, key)), program in zip(steps, compiled, strict=True):
        batch = jax.device_put(batch)
        state, _ = program(state, batch, key)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(_TIMED):
            state, _ = program(state, batch, key)
        jax.block_until_ready(state)
        print(f"| {name} | {_TIMED / (time.perf_counter() - began):.1f} |", flush=True)


def programs(job: TasteJob) -> list[tuple[str, Any, tuple[Any, Any, Any]]]:
    """Name, jitted step and its arguments."""
    listener = Listener(fetch.locate(job.whisper), job.model.value_layers, job.model.vocoder.mel)
    network, training = TasteNetwork(job.model, listener.config), job.training
    values = len(job.model.value_layers)
    params, key = network.init(training.seed), jax.random.key(0)
    lines = spelling.Lines(read_dictionary(fetch.locate(job.pronunciations)), [], 0)
    optimizer = spelling.make_optimizer(training.spelling.steps, training.peak_lr)
    learned = {"decoder": params["decoder"], "head": spelling.make_head(network, 0)}
    state: dict[str, Any] = {"params": learned, "opt": optimizer.init(learned)}
    step = spelling.make_step(network, optimizer)
    found = [("spelling", step, (state, lines.batch(4 * training.batch, 0), key))]
    optimizer = taste_stages.make_optimizer(training)
    learned = {name: params[name] for name in taste_stages.TRAINED}
    state = {
        "params": learned,
        "opt": optimizer.init(learned),
        "quantizer": params["quantizer"],
    }
    for told in (False, True):
        step = taste_stages.make_step(network, optimizer, training, told)
        for frames in FRAMES:
            examples = [made_up(listener, values, frames)] * training.batch
            batch = collate(examples, listener, frames)
            name = f"{'codes' if told else 'text'}, {frames} frames"
            found.append((name, step, (state, (batch, np.float32(told)), key)))
    rest = {name: part for name, part in params.items() if name != "vocoder"}
    pair = make_pair(network, job.vocoder.frames)
    step, start = make_adversarial_step(
        pair,
        job.model.vocoder.mel.rate,
        job.vocoder.adversary,
        training.adapt.steps,
        job.vocoder.seed,
    )
    for frames in FRAMES:
        examples = [made_up(listener, values, frames)] * job.vocoder.batch
        batch = collate(examples, listener, frames)
        batch |= {"audio": samples(examples, (frames - 1) * job.model.vocoder.mel.hop)}
        found.append(
            (f"adapt, {frames} frames", step, (start(params["vocoder"]), (rest, batch), key))
        )
    return found


def made_up(listener: Listener, values: int, frames: int) -> Example:
    """A noisy utterance that fills a padded length; `values` encoder layers are heard."""
    rng = np.random.default_rng(frames)
    words = ["word"] * (frames // 24)
    times = int(frames * listener.mel.hop / listener.mel.rate * 50)
    width, bands = listener.config.width, listener.mel.n_mels
    text, (tokens, index) = read_text(words, {}), listener.tokens(words)
    features = rng.normal(size=(times, 1 + values, width)).astype(np.float16)
    heard = Heard(
        features[:, 0],
        features[:, 1:],
        tokens,
        index,
        text,
        np.tile(np.array([0, frames], np.int32), (len(text.ids), 1)),
        rng.normal(size=(frames, bands)).astype(np.float16),
        rng.normal(size=frames).astype(np.float16),
        (rng.random(frames) < 0.5).astype(np.float16),
    )
    return Example(heard, len(words), np.zeros((frames - 1) * listener.mel.hop, np.float16))


if __name__ == "__main__":
    main()
