"""Heads that predict a vector in place of a code, from the hidden state of the column before it.

What comes next in speech has many right answers. `regression` gives their mean, which need not be
one of them; the others give one of them by chance, as a softmax over codes does. docs/continuous.md
shows it, and says which head to take when.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.flow import TIME_FEATURES, euler, path, time_features
from slm_jax.nn.layers import Linear, RMSNorm, scan_layers, stack

SCALE_FLOOR = 1e-2  # of a Gaussian; without it one vector that repeats would drive the loss to -inf
_COSINE_OFFSET = 0.008  # Nichol and Dhariwal 2021, §3.2
_ZEROS = jax.nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """Which head, and its sizes.

    Attributes:
      kind: "regression" (`RegressionHead`), "mixture" (`MixtureHead`), "flow" (`FlowHead`) or
        "diffusion" (`DiffusionHead`).
      width: L of the vectors.
      components: Gaussians of a mixture.
      inner, depth: width and residual blocks of the network of flow and diffusion.
      steps: passes through that network for one vector.
    """

    kind: Literal["regression", "mixture", "flow", "diffusion"]
    width: int
    components: int = 8
    inner: int = 512
    depth: int = 3
    steps: int = 32

    def __post_init__(self) -> None:
        if self.kind not in _HEADS:
            raise ValueError(f"kind must be one of {', '.join(_HEADS)}, got {self.kind!r}")
        for name in ("width", "components", "inner", "depth", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class ContinuousHead(nnx.Module):
    """What the heads have in common. They compute in f32 whatever the dtype of the hidden state."""

    @abc.abstractmethod
    def losses(self, hidden: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        """What to minimise for each vector; comparable only among heads of one kind.

        Args:
          hidden: [..., D].
          targets: [..., L], each dimension near zero mean and unit variance.
          key: of the times and the noise of flow and diffusion.

        Returns:
          f32 [...].
        """

    @abc.abstractmethod
    def sample(
        self, hidden: jax.Array, key: jax.Array, temperature: jax.Array | float = 1.0
    ) -> jax.Array:
        """Draws a vector for each hidden state.

        Args:
          hidden: [..., D].
          key: equal keys draw equal vectors.
          temperature: scales the noise, where the head has any: a mixture's deviations, the start
            of a flow, what diffusion adds in each step.

        Returns:
          f32 [..., L].
        """


class RegressionHead(ContinuousHead):
    """The mean of what may come, linear in the hidden state; its loss is the mean squared error."""

    def __init__(self, config: ContinuousConfig, hidden_width: int, rngs: nnx.Rngs):
        self.norm = RMSNorm(hidden_width)
        self.mean = Linear(hidden_width, config.width, bias=True, axes=("embed", None), rngs=rngs)

    def losses(self, hidden: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean((self.sample(hidden, key) - targets) ** 2, axis=-1)

    def sample(
        self, hidden: jax.Array, key: jax.Array, temperature: jax.Array | float = 1.0
    ) -> jax.Array:
        del key, temperature
        return self.mean(self.norm(hidden.astype(jnp.float32)))


class MixtureHead(ContinuousHead):
    """A mixture of diagonal Gaussians; its loss is the negative log-likelihood in nats a dimension.

    GIVT (Tschannen et al. 2023, arXiv:2312.02116): weights, means and deviations are linear in the
    hidden state, and here all dimensions of a vector come from one component.
    """

    def __init__(self, config: ContinuousConfig, hidden_width: int, rngs: nnx.Rngs):
        self.shape = (config.components, 2, config.width)
        outputs = config.components + math.prod(self.shape)
        self.norm = RMSNorm(hidden_width)
        self.linear = Linear(hidden_width, outputs, bias=True, axes=("embed", None), rngs=rngs)

    def mixture(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[..., D] -> log weights [..., M], means and deviations [..., M, L]."""
        flat = self.linear(self.norm(hidden.astype(jnp.float32)))
        logits, rest = jnp.split(flat, [self.shape[0]], axis=-1)
        means, raw = jnp.moveaxis(rest.reshape(*rest.shape[:-1], *self.shape), -2, 0)
        return jax.nn.log_softmax(logits), means, SCALE_FLOOR + jax.nn.softplus(raw)

    def losses(self, hidden: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        del key
        weights, means, scales = self.mixture(hidden)
        densities = jax.scipy.stats.norm.logpdf(targets[..., None, :], means, scales)
        joint = weights + jnp.sum(densities, axis=-1)
        return -jax.nn.logsumexp(joint, axis=-1) / targets.shape[-1]

    def sample(
        self, hidden: jax.Array, key: jax.Array, temperature: jax.Array | float = 1.0
    ) -> jax.Array:
        which, where = jax.random.split(key)
        weights, means, scales = self.mixture(hidden)
        chosen = jax.random.categorical(which, weights)[..., None, None]
        mean, scale = (
            jnp.take_along_axis(each, chosen, axis=-2)[..., 0, :] for each in (means, scales)
        )
        return mean + temperature * scale * jax.random.normal(where, mean.shape)


class FlowHead(ContinuousHead):
    """Conditional flow matching: noise is carried to a vector along paths straight on average.

    Lipman et al. 2022 (arXiv:2210.02747) with the network of `VectorNetwork`; the loss is the mean
    squared error of the velocity at a time of each vector's own. Sampled in equal Euler steps.
    """

    def __init__(self, config: ContinuousConfig, hidden_width: int, rngs: nnx.Rngs):
        self.network = VectorNetwork(config, hidden_width, rngs)
        self.width, self.steps = config.width, config.steps

    def losses(self, hidden: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        when, what = jax.random.split(key)
        t = jax.random.uniform(when, targets.shape[:-1])
        x, velocity = path(jax.random.normal(what, targets.shape), targets, t)
        return jnp.mean((self.network(x, t, self.network.read(hidden)) - velocity) ** 2, axis=-1)

    def sample(
        self, hidden: jax.Array, key: jax.Array, temperature: jax.Array | float = 1.0
    ) -> jax.Array:
        state = self.network.read(hidden.reshape(-1, hidden.shape[-1]))
        start = temperature * jax.random.normal(key, (len(state), self.width))
        vectors = euler(lambda x, t: self.network(x, t, state), start, self.steps)
        return vectors.reshape(*hidden.shape[:-1], self.width)


class DiffusionHead(ContinuousHead):
    """Denoising diffusion: the network names the noise in a vector, and it is taken out in steps.

    The "diffusion loss" of MAR (Li et al. 2024, arXiv:2406.11838 §3.2): the mean squared error of
    the noise under the cosine schedule of Nichol and Dhariwal 2021 (arXiv:2102.09672 eq. 17), and
    the ancestral sampler of DDPM (Ho et al. 2020, arXiv:2006.11239 eq. 7 and 11). Here time is
    continuous, and the variance of a step that of eq. 7, where MAR learns it.
    """

    def __init__(self, config: ContinuousConfig, hidden_width: int, rngs: nnx.Rngs):
        self.network = VectorNetwork(config, hidden_width, rngs)
        self.width, self.steps = config.width, config.steps

    def losses(self, hidden: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        when, what = jax.random.split(key)
        t = jax.random.uniform(when, targets.shape[:-1])
        noise = jax.random.normal(what, targets.shape)
        alpha, sigma = (level[..., None] for level in cosine_schedule(t))
        named = self.network(alpha * targets + sigma * noise, t, self.network.read(hidden))
        return jnp.mean((named - noise) ** 2, axis=-1)

    def sample(
        self, hidden: jax.Array, key: jax.Array, temperature: jax.Array | float = 1.0
    ) -> jax.Array:
        state = self.network.read(hidden)

        def step(x: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            number, key = inputs
            # At the middle of each step, because at t = 1 nothing of the vector is left, and its
            # estimate would divide by zero.
            t = (number + 0.5) / self.steps
            (alpha, sigma), (next_alpha, next_sigma) = map(
                cosine_schedule, (t, jnp.maximum(t - 1 / self.steps, 0))
            )
            kept = alpha / next_alpha
            added = 1 - kept**2  # variance of the noise between the two times
            mean = (x - added / sigma * self.network(x, t, state)) / kept
            noise = jax.random.normal(key, x.shape)
            return mean + temperature * jnp.sqrt(added) * next_sigma / sigma * noise, None

        start, *keys = jax.random.split(key, self.steps + 1)
        x = jax.random.normal(start, (*hidden.shape[:-1], self.width))
        numbers = jnp.arange(self.steps)[::-1]
        return jax.lax.scan(step, x, (numbers, jnp.stack(keys)))[0]


def cosine_schedule(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """t [...] in [0, 1] -> what is left of the vector, and the deviation of the noise, both [...].

    The roots of alpha-bar and 1 - alpha-bar (Nichol and Dhariwal eq. 17), the latter written as
    cos² a - cos² b = sin(b - a) sin(b + a), which does not cancel near t = 0.
    """
    begin, turn = (0.5 * math.pi * s / (1 + _COSINE_OFFSET) for s in (_COSINE_OFFSET, t))
    sigma = jnp.sqrt(jnp.sin(turn) * jnp.sin(2 * begin + turn))
    return jnp.cos(begin + turn) / math.cos(begin), sigma / math.cos(begin)


class VectorNetwork(nnx.Module):
    """What flow and diffusion ask of a noisy vector: a residual MLP that is told time and state.

    The denoising MLP of MAR (arXiv:2406.11838 §4 and `SimpleMLPAdaLN` of its code): the sum of both
    embeddings shifts, scales and gates every block (AdaLN-zero, Peebles and Xie 2022,
    arXiv:2212.09748 §3.2), whose norms therefore need no weights. It starts as zero.
    """

    def __init__(self, config: ContinuousConfig, hidden_width: int, rngs: nnx.Rngs):
        width, inner = config.width, config.inner
        self.norm = RMSNorm(hidden_width)
        self.condition = Linear(hidden_width, inner, bias=True, axes=("embed", None), rngs=rngs)
        self.time_in = Linear(TIME_FEATURES, inner, bias=True, axes=(None, "mlp"), rngs=rngs)
        self.time_out = Linear(inner, inner, bias=True, axes=("mlp", None), rngs=rngs)
        self.enter = Linear(width, inner, bias=True, axes=(None, "embed"), rngs=rngs)
        self.blocks = stack(lambda rngs: _Block(inner, rngs), config.depth, rngs)
        self.modulation = Linear(inner, 2 * inner, bias=True, init=_ZEROS, rngs=rngs)
        self.leave = Linear(inner, width, bias=True, init=_ZEROS, axes=("embed", None), rngs=rngs)

    def read(self, hidden: jax.Array) -> jax.Array:
        """Hidden [..., D] -> [..., inner]; apart, because it is the same in every step."""
        return self.condition(self.norm(hidden.astype(jnp.float32)))

    def __call__(self, x: jax.Array, t: jax.Array, state: jax.Array) -> jax.Array:
        """x [..., L], t [...] or a scalar, and what `read` returned -> [..., L]."""
        time = self.time_out(jax.nn.silu(self.time_in(time_features(t))))
        told = jax.nn.silu(time + state)
        h, _ = scan_layers(self.blocks, lambda block, h, _: (block(h, told), None), self.enter(x))
        shift, scale = jnp.split(self.modulation(told), 2, axis=-1)
        return self.leave(jax.nn.standardize(h) * (1 + scale) + shift)


class _Block(nnx.Module):
    def __init__(self, inner: int, rngs: nnx.Rngs):
        self.modulation = Linear(inner, 3 * inner, bias=True, init=_ZEROS, rngs=rngs)
        self.up = Linear(inner, inner, bias=True, rngs=rngs)
        self.down = Linear(inner, inner, bias=True, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, h: jax.Array, told: jax.Array) -> jax.Array:
        shift, scale, gate = jnp.split(self.modulation(told), 3, axis=-1)
        x = jax.nn.standardize(h) * (1 + scale) + shift
        return h + gate * self.down(jax.nn.silu(self.up(x)))


_HEADS: dict[str, type[ContinuousHead]] = {
    "regression": RegressionHead,
    "mixture": MixtureHead,
    "flow": FlowHead,
    "diffusion": DiffusionHead,
}


def make_head(config: ContinuousConfig, hidden_width: int, rngs: nnx.Rngs) -> ContinuousHead:
    """The head that `config.kind` names, for hidden states of width `hidden_width`."""
    return _HEADS[config.kind](config, hidden_width, rngs)
