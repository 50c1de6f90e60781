"""What a model over a grid is trained on: the losses of its rows, and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from slm_jax.layouts import Layout
from slm_jax.models.continuous import ContinuousHead
from slm_jax.models.depth import DepthTransformer
from slm_jax.models.grid_config import GridLMConfig
from slm_jax.nn.losses import TokenLoss, cross_entropy
from slm_jax.nn.placement import constrain

Columns = Mapping[str, jax.Array]


class States(NamedTuple):
    """What the heads read, each [B, S, D].

    Attributes:
      trunk: after the final norm.
      branch: after that of the branch; None without one.
    """

    trunk: jax.Array
    branch: jax.Array | None


class GridLosses:
    """The part of `GridLM` that compares what it says with targets."""

    config: GridLMConfig
    layout: Layout
    ctc: bool
    rows: tuple[int, ...]
    depth_rows: tuple[int, ...]
    depth: DepthTransformer
    continuous: ContinuousHead

    def losses(
        self,
        batch: Columns,
        key: jax.Array | None = None,
        token_loss: TokenLoss = cross_entropy,
    ) -> dict[str, jax.Array]:
        """Sums of all losses of a batch: of each row by name, of each group of
        `GridLMConfig.groups`, "vectors" and "upstream".

        Args:
          batch: see the class.
          key: of dropout, in a training step.
          token_loss: of every prediction of an id, but for those under CTC.
        """
        own, other = (None, None) if key is None else jax.random.split(key)
        states, text = self.states(batch, own)
        terms = {row: self._row_loss(states, batch, row, token_loss) for row in self.rows}
        terms |= self._depth_losses(states.trunk, batch, other, token_loss)
        sums = {self.layout.rows[row].name: value for row, value in terms.items()}
        for name, rows in self.config.groups(self.layout).items():
            sums[name] = sum(terms[row] for row in rows)
        if self.config.continuous is not None:
            keys = jax.vmap(jax.random.key)(batch["seeds"])
            found = jax.vmap(self.continuous.losses)(states.trunk, batch["vector_targets"], keys)
            sums["vectors"] = (found * self._vector_weights(batch)).sum()
        if text is not None:
            targets = batch["upstream/targets"][:, 0]
            weights = batch["upstream/weights"][:, 0]
            logits = self.backbone.logits(text)
            sums["upstream"] = (token_loss(logits, targets, weights) * weights).sum()
        return sums

    def weights(self, batch: Columns) -> dict[str, jax.Array]:
        """The weights of `losses`, which depend on the batch alone."""
        counts = batch["weights"].astype(jnp.float32)
        chosen = self._chosen(batch)
        terms = {}
        for row in self.rows:
            own = counts[:, row]
            if row in self.depth_rows and chosen is not None:
                own = jnp.take_along_axis(own, chosen, axis=1)
            terms[row] = own.sum()
        found = {self.layout.rows[row].name: value for row, value in terms.items()}
        for name, rows in self.config.groups(self.layout).items():
            found[name] = sum(terms[row] for row in rows)
        if self.config.continuous is not None:
            found["vectors"] = self._vector_weights(batch).sum()
        if self.config.second is not None:
            found["upstream"] = batch["upstream/weights"].astype(jnp.float32).sum()
        return found

    def _row_loss(
        self, states: States, batch: Columns, row: int, token_loss: TokenLoss
    ) -> jax.Array:
        if row in self.depth_rows:
            return jnp.float32(0)  # comes with the others of the depth transformer
        logits = self.logits(states, row)
        targets, weights = batch["targets"][:, row], batch["weights"][:, row]
        targets = targets - self.ids_of(row).start
        if not self.ctc:
            return (token_loss(logits, targets, weights) * weights).sum()
        gaps = (batch["segment_ids"] == 0).astype(jnp.float32)
        none = (weights == 0).astype(jnp.float32)
        blank = logits.shape[-1] - 1
        return optax.ctc_loss(
            logits, gaps, jnp.where(none > 0, 0, targets), none, blank_id=blank
        ).sum()

    def _depth_losses(
        self, hidden: jax.Array, batch: Columns, key: jax.Array | None, token_loss: TokenLoss
    ) -> dict[int, jax.Array]:
        if not self.depth_rows:
            return {}
        targets, weights = batch["targets"], batch["weights"].astype(jnp.float32)
        chosen = self._chosen(batch)
        if chosen is not None:
            hidden = jnp.take_along_axis(hidden, chosen[..., None], axis=1)
            targets, weights = (
                jnp.take_along_axis(x, chosen[:, None], axis=2) for x in (targets, weights)
            )
        previous = [
            jnp.full_like(targets[:, 0], -1) if row is None else targets[:, row]
            for row in self._before()
        ]
        told = [
            self.told(0 if row is None else row, ids)
            for row, ids in zip(self._before(), previous, strict=True)
        ]
        flat = constrain(hidden.reshape(-1, hidden.shape[-1]), "cells", None)
        given = jnp.stack(told, axis=2)
        logits = self.depth(flat, given.reshape(len(flat), *given.shape[2:]), key)
        found = {}
        for row, scores in zip(self.depth_rows, logits, strict=True):
            ids, counts = targets[:, row].reshape(-1), weights[:, row].reshape(-1)
            ids = ids - self.ids_of(row).start
            found[row] = (token_loss(scores, ids, counts) * counts).sum()
        return found

    def _chosen(self, batch: Columns) -> jax.Array | None:
        """int [B, n], columns for the depth transformer; None for all."""
        if not self.depth_rows or self.config.depth_share == 1:
            return None
        counted = (jnp.asarray(batch["weights"])[:, jnp.array(self.depth_rows)] > 0).any(1)
        most = -int(-self.config.depth_share * counted.shape[1] // 1)
        return first(counted, most)

    def _vector_weights(self, batch: Columns) -> jax.Array:
        """[B, S], 1 where a vector is to be predicted."""
        row = self.layout.rows.index(self.layout.vector_row)
        return batch["weights"][:, row] * (batch["targets"][:, row] == 0)


def first(wanted: jax.Array, most: int) -> jax.Array:
    """Columns of each row of a bool [B, S], int [B, most]: those wanted in turn, then the others.

    By counting and comparing, on every device that has a part of the row: the sort of
    `jax.lax.top_k` takes the TPU compiler half a minute.
    """
    wanted = constrain(wanted, "rows", None)
    before, others = jnp.cumsum(wanted, axis=1), jnp.cumsum(~wanted, axis=1)
    place = jnp.where(wanted, before, before[:, -1:] + others) - 1
    columns = jnp.arange(wanted.shape[1])
    return jnp.where(place[:, None] == jnp.arange(most)[:, None], columns, 0).sum(-1)
