"""How much each layer of the untouched text LLM tells about a word's speech codes.

    python benchmarks/layer_probe.py ~/.cache/slm_jax/datasets/prompts

One softmax regression for each layer and codebook level: from the state of the word's last column,
of unit size, to its code, fitted on the train split by L-BFGS. The L2 penalty of each is chosen on
the validation split. Printed are cross-entropies on the test split in nats, beside P(code) and
P(code | word) on the same words: what a speech head could know from that state alone, without
training the LLM.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data_pipelines import fetch
from slm_jax.data.dataset import open_dataset
from slm_jax.data.schema import StreamItem
from slm_jax.evaluation import baselines
from slm_jax.interop.llm import load_llm
from slm_jax.models.backbone import Backbone
from slm_jax.nn.tree import Params, merge, pure_params

BOS = 0
LAYERS = (0, 2, 8, 16, 24, 30)
PENALTIES = (3e-3, 1e-2, 2e-2, 4e-2, 8e-2)
STEPS = 60
BUCKET = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, help="with words, text-smollm2 and taste")
    families = ["words", "text-smollm2", "taste"]
    dataset = open_dataset(parser.parse_args().dataset)
    splits = {s: list(dataset.split(s, families)) for s in ("train", "validation", "test")}
    codes = {
        name: np.concatenate([record["taste"].values for record in records])
        for name, records in splits.items()
    }
    sizes = dataset.specs["taste"].vocab
    print(", ".join(f"{name} {len(found)} words" for name, found in codes.items()))

    config, params = load_llm(fetch.smollm2())
    graphdef, _ = pure_params(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))

    @jax.jit
    def read(params: Params, ids: jax.Array, positions: jax.Array) -> jax.Array:
        llm = merge(graphdef, params)
        every = 1 + config.layers
        mixes = [*jnp.eye(every)[jnp.array(LAYERS)], jnp.full(every, 1 / every)]
        states = [llm.run(llm.embed(ids), positions, None, None, mix)[1][0] for mix in mixes]
        return jnp.stack(states, axis=1)

    states = {
        name: np.concatenate([_words(read, params, record["text-smollm2"]) for record in records])
        for name, records in splits.items()
    }
    for column, layer in enumerate([*map(str, LAYERS), "mean"]):
        here = {name: _unit(found[:, column]) for name, found in states.items()}
        losses = [_fit(here, codes, level, size) for level, size in enumerate(sizes)]
        print(f"{layer:>14}", *(f"{loss:.3f}" for loss in losses), flush=True)
    spoken = {
        name: [([w.text for w in r["words"].words], r["taste"].values) for r in records]
        for name, records in splits.items()
    }
    base = baselines.evaluate(spoken["train"], spoken["test"], sizes)
    for name, losses in (("P(code)", base.unigram), ("P(code | word)", base.given_word)):
        print(f"{name:>14}", *(f"{loss:.3f}" for loss in losses))


def _words(read, params: Params, text: StreamItem) -> np.ndarray:
    """States after the last id of each word, [words, layers, D]."""
    ids = np.append(BOS, text.values[:, 0])
    length = -(-len(ids) // BUCKET) * BUCKET
    padded = np.pad(ids, (0, length - len(ids)))[None]
    ends = np.flatnonzero(np.diff(text.index, append=text.index[-1] + 1)) + 1
    return np.asarray(read(params, padded, np.arange(length)[None]))[ends]


def _unit(states: np.ndarray) -> np.ndarray:
    return states / np.sqrt((states**2).mean(-1, keepdims=True))


def _fit(
    states: dict[str, np.ndarray], codes: dict[str, np.ndarray], level: int, size: int
) -> float:
    """Cross-entropy on the test split with the penalty that is best on the validation split."""
    found = []
    for penalty in PENALTIES:
        weights = _regression(states["train"], codes["train"][:, level], size, penalty)
        losses = [
            float(_cross_entropy(weights, states[name], codes[name][:, level]))
            for name in ("validation", "test")
        ]
        found.append(losses)
    return min(found)[1]


@functools.partial(jax.jit, static_argnames="size")
def _regression(x: jax.Array, y: jax.Array, size: int, penalty: float) -> tuple:
    def loss(weights: tuple) -> jax.Array:
        return _cross_entropy(weights, x, y) + penalty * (weights[0] ** 2).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple, _: None) -> tuple:
        weights, state = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros((x.shape[1], size)), jnp.zeros(size)
    return jax.lax.scan(step, (start, solver.init(start)), None, length=STEPS)[0][0]


def _cross_entropy(weights: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = x @ weights[0] + weights[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


if __name__ == "__main__":
    main()
