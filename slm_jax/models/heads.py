"""Speech heads: what predicts the speech rows of the next column from the hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.models.embeddings import Fusion
from slm_jax.nn.layers import Linear, RMSNorm

FUSION_INIT = (1.0, -1.0)
NEAR_ZERO = jax.nn.initializers.normal(0.002)


class Latent(NamedTuple):
    """A diagonal Gaussian over the speech latent of the next column, and its target.

    Attributes:
      mean: [B, S, L].
      logvar: [B, S, L], or [L] where one variance serves all columns.
      codebooks: [K, V, L]; the target is the sum of the target codes' rows.
    """

    mean: jax.Array
    logvar: jax.Array
    codebooks: jax.Array


class TokenHeads(nnx.Module):
    """One softmax a level, all levels in parallel: norm and linear on the hidden state.

    The linears start near zero, hence from nearly equal odds for all codes: at the usual scale
    they would begin half a nat above that and have to be unlearned.
    """

    def __init__(self, codebooks: tuple[int, ...], width: int, epsilon: float, rngs: nnx.Rngs):
        self.norms = nnx.List(RMSNorm(width, epsilon=epsilon) for _ in codebooks)
        self.linears = nnx.List(
            Linear(width, size, rngs=rngs, axes=("embed", "codes"), init=NEAR_ZERO)
            for size in codebooks
        )

    def __call__(self, hidden: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        """hidden [B, S, D] -> logits [B, S, V_k] of each level, and no latent."""
        return self.read([hidden] * len(self.norms)), None

    def read(self, states: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """A state [B, S, D] for each level -> its logits [B, S, V_k]."""
        levels = zip(self.norms, self.linears, states, strict=True)
        return tuple(linear(norm(state)) for norm, linear, state in levels)


class WordTokenHeads(nnx.Module):
    """Token heads that also read, for each level, the word whose code they are to predict.

    A code is spoken some words after its word, and the last layer of a text LLM is about the word
    to come. So each level reads two states: the last one at the column it predicts from, which has
    seen the codes so far, and a mixture of all layers at the last column of the code's own word,
    which tells what that word is. The mixture has one learned share a layer, for all levels (ELMo,
    Peters et al. 2018, arXiv:1802.05365, eq. 1, over states of unit size). Qwen2.5-Omni
    (arXiv:2503.20215) likewise gives its talker the words beside the LLM's states. The two are
    summed with learned weights before one norm and linear, as `Fusion` does with what goes in.
    """

    def __init__(
        self, codebooks: tuple[int, ...], width: int, layers: int, epsilon: float, rngs: nnx.Rngs
    ):
        self.norm = RMSNorm(width, epsilon=epsilon)
        self.mix = nnx.Param(jnp.zeros(1 + layers), axes=(None,))
        self.fusion = Fusion(FUSION_INIT)
        self.levels = TokenHeads(codebooks, width, epsilon, rngs)

    def shares(self) -> jax.Array:
        """f32 [1 + layers]: of the embedded columns and of each block, in sum 1."""
        return jax.nn.softmax(self.mix[...])

    def __call__(
        self, hidden: jax.Array, words: Sequence[jax.Array]
    ) -> tuple[tuple[jax.Array, ...], None]:
        """hidden [B, S, D] and for each level its words' mixtures [B, S, D] -> as `TokenHeads`."""
        column = self.norm(hidden)
        return self.levels.read([self.fusion(self.norm(word), column) for word in words]), None


class LatentHead(nnx.Module):
    """Predicts the sum of all levels' code vectors as one continuous latent (TASLM "emb").

    The mean is linear in the hidden state. The log-variance is one learned vector, as in the
    TASTE-SpokenLM code (`ContinueLatentLinearLastExtract`), or linear too, as in the paper. The
    frozen codebooks turn a latent into codes, greedily and level by level, as the residual
    quantizer does; the published code adds one standard deviation before, this does not.
    """

    def __init__(
        self,
        codebooks: tuple[int, ...],
        width: int,
        latent_width: int,
        logvar: Literal["global", "linear"],
        rngs: nnx.Rngs,
    ):
        self.mean = Linear(width, latent_width, bias=True, rngs=rngs, axes=("embed", None))
        if logvar == "linear":
            self.logvar = Linear(width, latent_width, rngs=rngs, axes=("embed", None))
        else:
            self.logvar = nnx.Param(jnp.zeros(latent_width), axes=(None,))
        table = jnp.zeros((len(codebooks), codebooks[0], latent_width))
        self.codebooks = nnx.Param(table, axes=(None, "codes", None))

    def __call__(self, hidden: jax.Array) -> tuple[tuple[jax.Array, ...], Latent]:
        """hidden [B, S, D] -> per level the scores of `requantise`, and the latent."""
        mean = self.mean(hidden).astype(jnp.float32)
        logvar = self.logvar
        logvar = logvar(hidden).astype(jnp.float32) if isinstance(logvar, Linear) else logvar[...]
        latent = Latent(mean, logvar, jax.lax.stop_gradient(self.codebooks[...]))
        return requantise(latent.mean, latent.codebooks), latent


def requantise(latent: jax.Array, codebooks: jax.Array) -> tuple[jax.Array, ...]:
    """Scores of each level's codes for a latent; the argmax is the residual quantizer's choice.

    Args:
      latent: [..., L].
      codebooks: [K, V, L].

    Returns:
      Per level [..., V]: minus half the squared distance of each code to what the nearest codes of
      the coarser levels left over, up to a constant.
    """
    scores, residual = [], latent
    for table in codebooks:
        scores.append(residual @ table.T - 0.5 * (table**2).sum(-1))
        residual -= table[scores[-1].argmax(-1)]
    return tuple(scores)
