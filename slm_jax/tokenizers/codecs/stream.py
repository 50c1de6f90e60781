"""Causal codecs as streams: chunk after chunk they give what whole rows give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.streaming import Rows, Run, Stream
from slm_jax.nn.tree import merge
from slm_jax.streams import StreamSpec
from slm_jax.tokenizers.checks import check_chunk, check_chunk_codes
from slm_jax.tokenizers.codecs.codec import Codec, keep, own


class StreamingNetwork(nnx.Module):
    """Base of causal networks, whose layers go through `run` (see `slm_jax.nn.streaming`).

    Attributes:
      config: has `frame`, samples of one frame, and `levels`.
      to_codes: method (audio [B, n], levels, run) -> int32 [B, frames, levels].
      to_audio: method (codes int [B, frames, K'], run) -> [B, n].
    """

    config: Any
    to_codes: Callable[[jax.Array, int, Run], jax.Array]
    to_audio: Callable[[jax.Array, Run], jax.Array]

    def encode(
        self, audio: jax.Array, lengths: jax.Array, levels: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `Codec.encode`."""
        rows = Rows(lengths)
        codes = self.to_codes(audio, levels, rows)
        return keep(codes, rows.lengths), rows.lengths

    def decode(self, codes: jax.Array, frames: jax.Array) -> jax.Array:
        """See `Codec.decode`."""
        rows = Rows(frames)
        audio = self.to_audio(codes, rows)
        return keep(audio, rows.lengths)

    def encode_step(
        self, state: list[Any] | None, audio: jax.Array, levels: int
    ) -> tuple[jax.Array, list[Any]]:
        """The encoder's state, None at the first chunk, and a chunk [B, n] -> codes and state."""
        stream = Stream(state)
        return self.to_codes(audio, levels, stream), stream.after

    def decode_step(self, state: list[Any] | None, codes: jax.Array) -> tuple[jax.Array, list[Any]]:
        """The decoder's state, None at the first chunk, and codes -> audio [B, n] and state."""
        stream = Stream(state)
        return self.to_audio(codes, stream), stream.after

    def start(self, batch: int) -> tuple[list[Any], list[Any]]:
        """States of encoder and decoder before the first chunk; like their layers', all zeros."""
        audio = jax.ShapeDtypeStruct((batch, self.config.frame), jnp.float32)
        codes = jax.ShapeDtypeStruct((batch, 1, self.config.levels), jnp.int32)
        states = (
            jax.eval_shape(lambda x: self.encode_step(None, x, 1)[1], audio),
            jax.eval_shape(lambda x: self.decode_step(None, x)[1], codes),
        )
        return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), states)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamState:
    """What a stream remembers between chunks.

    Attributes:
      encoder, decoder: states of their layers, of the same shapes at every step.
      batch: how many streams.
      may_encode, may_decode: whether a single frame may come next; only `first_frames` at first.
    """

    encoder: list[Any]
    decoder: list[Any]
    batch: int = dataclasses.field(metadata={"static": True})
    may_encode: bool = dataclasses.field(metadata={"static": True})
    may_decode: bool = dataclasses.field(metadata={"static": True})


class StreamingCodec(Codec):
    """A `Codec` that also runs as a stream. The audio of a frame is out once its codes are in.

    Args:
      network: a `StreamingNetwork`.
      first_frames: see below.

    Attributes:
      frame: samples of one frame.
      first_frames: frames that the first chunk must have at least.
    """

    def __init__(
        self,
        network: StreamingNetwork,
        spec: StreamSpec,
        sample_rate: int,
        levels: int,
        first_frames: int,
    ):
        super().__init__(network, spec, sample_rate, levels=levels)
        self.frame, self.first_frames = network.config.frame, first_frames
        self._encode_step = self.jit("encode_step", levels=levels)
        self._decode_step = self.jit("decode_step")

    def init_state(self, batch: int) -> StreamState:
        """State before the first chunk of `batch` streams."""
        single = self.first_frames == 1
        states = merge(self._graphdef, self._params).start(batch)
        return StreamState(*states, batch, single, single)

    def encode_step(self, state: StreamState, audio: jax.Array) -> tuple[jax.Array, StreamState]:
        """Encodes the next chunk of every stream.

        Args:
          state: of `init_state` or of the last step.
          audio: float32 [B, n], one or more whole frames; at first `first_frames` or more.

        Returns:
          codes: int32 [B, n / frame, K].
          state: for the next step; what of it belongs to decoding is as it was.

        Raises:
          ValueError: `n` is not a whole number of frames, or too few to begin with; another shape
            or type.
          UserError: samples that are not finite or far too loud.
        """
        check_chunk(audio, state.batch)
        audio = own(audio, jnp.float32)
        if audio.shape[1] % self.frame or not audio.shape[1]:
            raise ValueError(f"a chunk is whole frames of {self.frame}, got {audio.shape[1]}")
        self._check(state.may_encode, audio.shape[1] // self.frame)
        codes, after = self._encode_step(state.encoder, audio)
        return codes, dataclasses.replace(state, encoder=after, may_encode=True)

    def decode_step(self, state: StreamState, codes: jax.Array) -> tuple[jax.Array, StreamState]:
        """Decodes the next frames of every stream.

        Args:
          state: of `init_state` or of the last step.
          codes: int [B, T, K'] of the first K' levels; at first T is `first_frames` or more.

        Returns:
          audio: float32 [B, T * frame].
          state: for the next step; what of it belongs to encoding is as it was.

        Raises:
          ValueError: T is too small to begin with; another shape or type, or codes out of range.
        """
        check_chunk_codes(codes, state.batch, self.spec.vocab)
        codes = own(codes, jnp.int32)
        self._check(state.may_decode, codes.shape[1])
        audio, after = self._decode_step(state.decoder, codes)
        return audio, dataclasses.replace(state, decoder=after, may_decode=True)

    def _check(self, begun: bool, frames: int) -> None:
        if not begun and frames < self.first_frames:
            raise ValueError(
                f"a stream must begin with {self.first_frames} frames or more, got {frames}"
            )
