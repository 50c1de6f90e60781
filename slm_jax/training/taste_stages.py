"""The TASTE tokenizer's stages: spelling, then text, latents and codes.

As in the paper's code (reference `STAGE1_TRAIN`): (1) the decoder learns to speak from text and a
speaker vector alone, (2) latents are added without quantizer, (3) codebooks start from k-means on
them and the quantizer is switched on. The aggregator's pretrained layers learn slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slm_jax.nn.quantizers import rvq_ema, rvq_kmeans
from slm_jax.nn.tree import Params
from slm_jax.tokenizers.taste_encoder import start_from_whisper
from slm_jax.tokenizers.taste_listen import Listener
from slm_jax.tokenizers.taste_network import TasteConfig, TasteNetwork
from slm_jax.training.fit import FitConfig, fit
from slm_jax.training.spelling import Lines, learn_to_spell
from slm_jax.training.taste_examples import FRAMES, Example, collate, draws
from slm_jax.training.taste_losses import heard_words, losses, resynthesis

TRAINED = ("aggregator", "prosody", "speaker", "decoder")


@dataclasses.dataclass(frozen=True)
class TasteTraining:
    """Steps and rates of the three stages and the vocoder's last one.

    Attributes:
      spelling, text, latent, quantized, adapt: the stages in their order.
      batch: utterances a step.
      peak_lr, aggregator_lr: of the decoder and speaker, and of the pretrained aggregator.
      duration_weight, commitment: of their losses; mels have weight 1.
      dropout_levels: probability that a step uses only a coarse part of the RVQ levels.
      dropout_codes: probability that an utterance is spoken from its text alone.
    """

    spelling: FitConfig = FitConfig(steps=1800)
    text: FitConfig = FitConfig(steps=1000)
    latent: FitConfig = FitConfig(steps=200)
    quantized: FitConfig = FitConfig(steps=4800)
    adapt: FitConfig = FitConfig(steps=1000)
    batch: int = 4
    peak_lr: float = 2e-3
    aggregator_lr: float = 2e-4
    duration_weight: float = 0.5
    commitment: float = 0.25
    dropout_levels: float = 0.2
    dropout_codes: float = 0.1
    seed: int = 0


def make_step(
    network: TasteNetwork, optimizer: optax.GradientTransformation, t: TasteTraining, told: bool
):
    """(state, (batch, quantized), key) -> (state, losses), jitted; see `losses`."""

    @jax.jit
    def step(state, inputs, key):
        batch, quantized = inputs
        rest = {"quantizer": state["quantizer"]}

        def total(trained):
            return losses(network, trained | rest, batch, key, told, quantized, t)

        grads, (named, latents) = jax.grad(total, has_aux=True)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        quantizer = state["quantizer"]
        if network.config.quantizer == "rvq":
            moved = rvq_ema(quantizer, network.config.rvq, latents, batch["word_mask"], key)
            quantizer = jax.tree.map(
                lambda old, new: jnp.where(quantized > 0, new, old), quantizer, moved
            )
        return {"params": params, "opt": opt, "quantizer": quantizer}, named

    return step


def make_optimizer(training: TasteTraining) -> optax.GradientTransformation:
    """AdamW over the three stages on speech, with one cosine over all of them."""
    steps = training.text.steps + training.latent.steps + training.quantized.steps
    decay = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(200, steps // 10), steps, 0.03)

    def adam(rate):
        return optax.adamw(lambda s: rate * decay(s), b1=0.9, b2=0.98, weight_decay=0.01)

    labels = {name: "slow" if name == "aggregator" else "fast" for name in TRAINED}
    return optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.partition(
            {"slow": adam(training.aggregator_lr), "fast": adam(training.peak_lr)}, labels
        ),
    )


def make_judge(
    network: TasteNetwork,
    held_out: Sequence[Example],
    listener: Listener,
    training: TasteTraining,
    told: bool,
    quantized: float,
) -> Callable[[dict[str, Any]], dict[str, float]] | None:
    """state -> held-out losses, with all levels and codes, over whole batches; None without
    held-out utterances."""
    if not held_out:
        return None
    whole = dataclasses.replace(training, dropout_levels=0.0, dropout_codes=0.0)
    rows = min(training.batch, len(held_out))
    starts = range(0, len(held_out) - rows + 1, rows)
    batches = [collate(held_out[at : at + rows], listener, FRAMES[-1]) for at in starts]

    @jax.jit
    def lost(state, batch, quantized):
        params = state["params"] | {"quantizer": state["quantizer"]}
        return losses(network, params, batch, jax.random.key(0), told, quantized, whole)[1][0]

    def judge(state):
        found = [jax.device_get(lost(state, batch, np.float32(quantized))) for batch in batches]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    return judge


def train_tokenizer(
    run_dir: Path,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    lines: Lines,
    listener: Listener,
    vocoder: Params,
    config: TasteConfig,
    training: TasteTraining,
) -> Params:
    """The spelling stage and the three stages on speech; returns all parameters but the
    vocoder's.

    Args:
      examples, held_out: to learn from, and to judge every checkpoint by (may be empty).
      lines: of the spelling stage.
      vocoder: parameters of the samples of speech in TensorBoard.
    """
    network = TasteNetwork(config, listener.config)
    params = network.init(training.seed)
    params["aggregator"] = start_from_whisper(
        params["aggregator"], listener.decoder, config.aggregator_layers
    )
    params["decoder"] = learn_to_spell(
        run_dir,
        network,
        params["decoder"],
        lines,
        training.spelling,
        rows=4 * training.batch,
        peak_lr=training.peak_lr,
        seed=training.seed,
    )
    optimizer = make_optimizer(training)
    trained = {name: params[name] for name in TRAINED}
    state = {
        "params": trained,
        "opt": optimizer.init(trained),
        "quantizer": params["quantizer"],
    }
    text = make_step(network, optimizer, training, told=False)
    told = make_step(network, optimizer, training, told=True)
    stages = [
        ("text", training.text, text, 0.0),
        ("latent", training.latent, told, 0.0),
        ("quantized", training.quantized, told, 1.0),
    ]
    sample, hop = collate(examples[:1], listener), config.vocoder.mel.hop
    said = jax.jit(lambda *args: resynthesis(network, *args))
    for number, (name, schedule, step, quantized) in enumerate(stages):
        if name == "quantized" and config.quantizer == "rvq":
            state["quantizer"] = _codebooks(network, state, examples, listener, training)

        drawn = draws(examples, training.batch, training.seed * 10 + number)

        def batch_at(at: int, drawn: Any = drawn, quantized: float = quantized):
            return collate(drawn(at), listener), np.float32(quantized)

        def listen(state: dict[str, Any], name: str = name, quantized: float = quantized):
            told = 0.0 if name == "text" else 1.0
            params = state["params"] | {"quantizer": state["quantizer"], "vocoder": vocoder}
            return said(params, sample, told, quantized)[0, : sample["frames"][0] * hop]

        judge = make_judge(network, held_out, listener, training, name != "text", quantized)
        seed = training.seed + number
        state = fit(run_dir, name, schedule, state, step, batch_at, seed, listen, judge)
    return state["params"] | {"quantizer": state["quantizer"]}


def _codebooks(
    network: TasteNetwork,
    state: dict[str, Any],
    examples: Sequence[Example],
    listener: Listener,
    training: TasteTraining,
) -> dict[str, jax.Array]:
    """k-means over the latents of the training set (at most 20,000 words)."""

    @jax.jit
    def find(params, batch):
        return heard_words(network, params, batch)[0]

    vectors, count = [], 0
    order = sorted(range(len(examples)), key=lambda i: examples[i].frames)
    rows = min(training.batch, len(order))
    for start in range(0, len(order) - rows + 1, rows):
        batch = collate([examples[i] for i in order[start : start + rows]], listener)
        latents = np.asarray(find(state["params"], batch))
        vectors.append(latents[batch["word_mask"] > 0])
        count += len(vectors[-1])
    pool = np.concatenate(vectors)
    rng = np.random.default_rng(training.seed)
    pool = pool[rng.permutation(len(pool))[:20_000]]
    return rvq_kmeans(network.config.rvq, pool, training.seed)
