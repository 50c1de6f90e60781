"""Two right answers: where a regression lands, and where the heads that draw an answer do.

    python benchmarks/two_answers.py docs/two_answers.png

Each context has two equally likely answers, a vector and its opposite, which the context names but
does not choose between. Every head is trained on the same pairs, for the same number of steps, over
a small network that stands for the language model; then each answers new contexts. Prints a table,
and draws the answers (this needs matplotlib).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from slm_jax.models.continuous import ContinuousConfig, ContinuousHead, make_head
from slm_jax.models.heads import TokenHeads
from slm_jax.nn.layers import Linear
from slm_jax.nn.quantizers import RvqConfig, rvq_decode, rvq_encode, rvq_kmeans
from slm_jax.nn.tree import merge, pure_params

NOISE = 0.05  # deviation of a target around its answer; the answers are 1.4 to 2.6 apart
NEAR = 0.25  # a draw that is no farther from an answer has landed on it
CODES = 64
HIDDEN, BATCH = 32, 256
CONTINUOUS = ("regression", "mixture", "flow", "diffusion")
KINDS = ("codes", *CONTINUOUS)


class Landing(NamedTuple):
    """Where the draws of a head are: shares near the one answer, near the other, and near neither;
    the mean distance to the nearest answer; the draws [N, 2]."""

    one: float
    other: float
    neither: float
    distance: float
    draws: np.ndarray


def answers(angles: jax.Array) -> jax.Array:
    """The one answer [N, 2] to each angle [N] in [0, pi); the other is its opposite."""
    radius = 1 + 0.3 * jnp.cos(3 * angles)
    return radius[:, None] * context(angles)


def context(angles: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Angles [N] and targets [N, 2]."""
    where, which, noise = jax.random.split(key, 3)
    angles = jax.random.uniform(where, (count,), maxval=jnp.pi)
    side = jax.random.rademacher(which, (count, 1)).astype(jnp.float32)
    return angles, side * answers(angles) + NOISE * jax.random.normal(noise, (count, 2))


class CodesHead(ContinuousHead):
    """A softmax over the codes of a k-means of the targets: the discrete way."""

    def __init__(self, rngs: nnx.Rngs):
        targets = np.asarray(draw(jax.random.key(1), 4000)[1])
        self.centroids = nnx.Param(rvq_kmeans(RvqConfig(1, CODES, 2), targets, 0)["codebooks"])
        self.heads = TokenHeads((CODES,), HIDDEN, 1e-5, rngs)

    def losses(self, hidden: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        codes = rvq_encode(jax.lax.stop_gradient(self.centroids[...]), targets)[..., 0]
        (logits,), _ = self.heads(hidden)
        return optax.softmax_cross_entropy_with_integer_labels(logits, codes)

    def sample(
        self, hidden: jax.Array, key: jax.Array, temperature: jax.Array | float = 1.0
    ) -> jax.Array:
        (logits,), _ = self.heads(hidden)
        return rvq_decode(self.centroids[...], jax.random.categorical(key, logits)[..., None])


class Speaker(nnx.Module):
    """A network that stands for the language model, and a head on its state."""

    def __init__(self, kind: str, rngs: nnx.Rngs):
        self.enter = Linear(2, HIDDEN, bias=True, rngs=rngs)
        self.leave = Linear(HIDDEN, HIDDEN, bias=True, rngs=rngs)
        if kind == "codes":
            self.head = CodesHead(rngs)
        else:
            config = ContinuousConfig(kind, width=2, components=4, inner=64, depth=2)
            self.head = make_head(config, HIDDEN, rngs)

    def hidden(self, angles: jax.Array) -> jax.Array:
        return self.leave(jax.nn.silu(self.enter(context(angles))))


def train(kind: str, steps: int) -> Speaker:
    """One head with its network, after `steps` batches of fresh pairs; the same ones for all."""
    graphdef, params = pure_params(Speaker(kind, nnx.Rngs(0)))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def loss(params, key):
        data, noise = jax.random.split(key)
        angles, targets = draw(data, BATCH)
        speaker = merge(graphdef, params)
        return speaker.head.losses(speaker.hidden(angles), targets, noise).mean()

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return merge(graphdef, run(params))


def land(speaker: Speaker, angles: jax.Array) -> Landing:
    """Lets the head answer each context once."""
    draws = jax.jit(speaker.head.sample)(speaker.hidden(angles), jax.random.key(2))
    one, other = (jnp.linalg.norm(draws - s * answers(angles), axis=-1) for s in (1, -1))
    nearest = jnp.minimum(one, other)
    shares = ((one <= NEAR).mean(), (other <= NEAR).mean(), (nearest > NEAR).mean())
    return Landing(*map(float, shares), float(nearest.mean()), np.asarray(draws))


def figure(landings: dict[str, Landing], angles: np.ndarray, path: Path) -> None:
    """One panel a head: context across, and up how far the draw lies along the one answer."""
    from matplotlib import pyplot as plt

    along = np.asarray(context(angles))
    order = np.argsort(angles)
    radius = np.sum(np.asarray(answers(angles)) * along, axis=-1)[order]
    panels, axes = plt.subplots(1, len(landings), figsize=(11, 2.6), sharey=True)
    for axis, (kind, landing) in zip(axes, landings.items(), strict=True):
        for side in (radius, -radius):
            axis.plot(angles[order], side, color="0.8", linewidth=5, zorder=0)
        axis.scatter(angles, np.sum(landing.draws * along, axis=-1), s=3, color="C0")
        axis.set_title(f"{kind}: {1 - landing.neither:.0%} on an answer", fontsize=9)
        axis.set_xlabel("context (angle)", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("along the answer", fontsize=8)
    panels.tight_layout()
    panels.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--contexts", type=int, default=1000)
    args = parser.parse_args()
    angles, _ = draw(jax.random.key(3), args.contexts)
    landings = {}
    print(f"{'head':<11} one answer  the other  neither  mean distance")
    for kind in KINDS:
        landings[kind] = row = land(train(kind, args.steps), angles)
        shares = f"{row.one:>10.1%} {row.other:>10.1%} {row.neither:>8.1%}"
        print(f"{kind:<11} {shares} {row.distance:>14.3f}", flush=True)
    shown = slice(500)
    figure(
        {kind: row._replace(draws=row.draws[shown]) for kind, row in landings.items()},
        np.asarray(angles)[shown],
        args.figure,
    )


if __name__ == "__main__":
    main()
