"""A second transformer, which speaks from the states of a text LLM (the algebra's `Feed`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.models.backbone import BackboneConfig
from slm_jax.models.cross_decoder import CrossDecoderConfig
from slm_jax.models.grid_embedding import Gate
from slm_jax.nn.layers import Linear


@dataclasses.dataclass(frozen=True)
class SecondConfig:
    """What reads the grid where the text LLM reads the text alone.

    A column that holds an item of `Layout.upstream` is linked with the LLM's state after that item.

    Attributes:
      trunk: sizes of the second transformer, without a vocabulary of its own.
      via: "add" the state to what the column is embedded as (Qwen2.5-Omni's Talker), "replace"
        it (LLaMA-Omni, Freeze-Omni), mix both by a "gated" sum (LLaMA-Omni 2), or let every column
        attend to all states of its record ("cross", MusicGen).
      slices: vectors that a state is cut into, one for each copy of the item that the layout has
        (Freeze-Omni: 4).
      width: of tables and states; 0 for the trunk's. Another is brought to that by a linear map.
      detach: whether the text LLM gets no gradient from what is spoken.
      text_weight: of the LLM's own loss on the text; 0 where it is not to learn.
    """

    trunk: BackboneConfig | CrossDecoderConfig
    via: Literal["add", "replace", "gated", "cross"] = "add"
    slices: int = 1
    width: int = 0
    detach: bool = False
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.trunk, CrossDecoderConfig) != (self.via == "cross"):
            raise ValueError("via must be 'cross' with a CrossDecoderConfig, and only then")
        if self.slices < 1 or (self.slices > 1 and self.via == "cross"):
            raise ValueError("slices must be positive, and 1 with via = 'cross'")

    @property
    def table_width(self) -> int:
        """Width of the embedded columns."""
        return self.width or self.trunk.width


class Feed(nnx.Module):
    """Brings the LLM's states, of width `states`, into embedded columns."""

    def __init__(self, config: SecondConfig, states: int, rngs: nnx.Rngs):
        if states % config.slices:
            raise ValueError(f"slices must divide the states' width {states}")
        self.config = config
        width, given = config.table_width, states // config.slices
        axes = (None, "embed")
        target = config.trunk.memory_width if config.via == "cross" else width
        if given != target or config.via == "gated":
            self.states = Linear(given, target, bias=True, rngs=rngs, axes=axes)
        else:
            self.states = None
        self.gate = Gate(width, rngs) if config.via == "gated" else None
        if width != config.trunk.width:
            self.columns = Linear(width, config.trunk.width, bias=True, rngs=rngs, axes=axes)
        else:
            self.columns = None

    def memory(self, states: jax.Array) -> jax.Array:
        """The LLM's states [B, T, D'] as they are linked or attended to: [B, T, r, E]."""
        if self.config.detach:
            states = jax.lax.stop_gradient(states)
        cut = states.reshape(*states.shape[:2], self.config.slices, -1)
        return cut if self.states is None else self.states(cut)

    def __call__(
        self, x: jax.Array, memory: jax.Array, columns: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Columns that know the state of the item in them.

        Args:
          x: [B, S, E] embedded columns.
          memory: of `memory`.
          columns: "links" int [B, S], place of the state, -1 for none; "copies" int [B, S], which
            copy of the item it is, from 0.

        Returns:
          [B, S, D] of the trunk.
        """
        if self.config.via != "cross":
            links, last = columns["links"], memory.shape[2] - 1
            rows = jnp.arange(len(x))[:, None]
            state = memory[rows, jnp.maximum(links, 0), jnp.minimum(columns["copies"], last)]
            state = state.astype(x.dtype)
            linked = {"add": lambda: x + state, "replace": lambda: state}
            made = self.gate(state, x) if self.gate is not None else linked[self.config.via]()
            x = jnp.where((links >= 0)[..., None], made, x)
        return x if self.columns is None else self.columns(x)
