"""The interface that all neural codecs share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.nn.codec_conv import within
from slm_jax.nn.tree import flatten, load_flat, merge, pure_params
from slm_jax.streams import StreamSpec, fingerprint
from slm_jax.tokenizers.checks import check_codes, check_duration, check_rows

N = TypeVar("N", bound=nnx.Module)


class Codec:
    """Audio to codes and back, jitted and batched; rows may have different lengths, and each gives
    what it gives alone. Every new shape of a batch is compiled anew: pad to few of them.

    Its network has `encode` and `decode` like those below, the first with keyword arguments
    `options` of its own, which stay the same.

    Attributes:
      spec: the code stream. Its clock is the frame rate; vocab has an entry for each level.
      sample_rate: of the audio in and out, in Hz.
      delay: samples by which decoded audio lags behind the audio it was made from.
      longest: seconds of a row, at most; whole rows take memory for every sample.
      fewest: levels that `decode` needs.
    """

    delay, longest, fewest = 0, 300.0, 1

    def __init__(self, network: nnx.Module, spec: StreamSpec, sample_rate: int, **options: Any):
        self.spec, self.sample_rate = spec, sample_rate
        self._graphdef, self._params = pure_params(network)
        self._encode = self.jit("encode", **options)
        self._decode = self.jit("decode")

    def encode(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes rows of audio.

        Args:
          audio: float32 [B, n], one channel at `sample_rate`.
          lengths: int [B], samples of each row.

        Returns:
          codes: int32 [B, T, K], coarse level first; 0 beyond a row's frames.
          frames: int [B]; 0 of no samples.

        Raises:
          ValueError: shapes or types that do not fit.
          UserError: samples that are not finite or far too loud, or a row that is too long.
        """
        check_rows(audio, lengths)
        batch, count = np.shape(audio)
        self._check_duration(count / self.sample_rate)
        if not batch * count:
            return jnp.zeros((batch, 0, self.spec.levels), jnp.int32), jnp.zeros(batch, jnp.int32)
        return self._encode(own(audio, jnp.float32), own(lengths, jnp.int32))

    def decode(self, codes: jax.Array, frames: jax.Array) -> jax.Array:
        """Codes int [B, T, K'] of the first K' <= K levels, frames int [B] -> float32 [B, n]; 0
        beyond a row's frames. n may exceed the length of the audio encoded, by less than a frame.

        Raises:
          ValueError: shapes, types or levels that do not fit, or codes out of range.
          UserError: a row that is too long.
        """
        self.check_codes(codes, frames)
        if not np.size(codes):
            return jnp.zeros((len(codes), 0))
        return self._decode(own(codes, jnp.int32), own(frames, jnp.int32))

    def check_codes(self, codes: jax.Array, frames: jax.Array) -> None:
        """Raises what `decode` says."""
        check_codes(codes, frames, self.spec.vocab, self.fewest)
        self._check_duration(np.shape(codes)[1] / self.spec.clock)

    def _check_duration(self, seconds: float) -> None:
        remedy = "cut the recording, or code it as a stream (encode_step, or tokenizers.chunked)"
        check_duration(seconds, self.longest, remedy)

    def jit(self, method: str, **options: Any) -> Callable[..., Any]:
        """A method of the network, compiled, with its weights and these keyword arguments given.

        Products are not rounded to TF32 or bfloat16 on any device: a code is an argmin, and
        rounding would make other codes on other machines.
        """

        def call(params, *args):
            with jax.default_matmul_precision("highest"):
                return getattr(merge(self._graphdef, params), method)(*args, **options)

        return functools.partial(jax.jit(call), self._params)


def build(make: Callable[[], N], weights: Mapping[str, np.ndarray]) -> N:
    """The module that `make` makes, with these weights in place of random ones.

    Raises:
      UserError: naming every missing, unexpected and misshapen weight.
    """
    graphdef, abstract = pure_params(nnx.eval_shape(make))
    return merge(graphdef, jax.tree.map(jnp.asarray, load_flat(abstract, weights)))


def codec_spec(
    name: str, network: nnx.Module, vocab: tuple[int, ...], clock: float, lookahead: float
) -> StreamSpec:
    """StreamSpec of a network with a `config`; the fingerprint is that of config and weights."""
    flat = flatten(pure_params(network)[1])
    settings = dataclasses.asdict(network.config)
    weights = [np.asarray(flat[path]).tobytes() for path in sorted(flat)]
    identity = fingerprint(name, settings, len(vocab), *weights)
    return StreamSpec(name, "codes", clock, vocab, fingerprint=identity, lookahead=lookahead)


def choose_levels(levels: int | None, stored: int, least: int = 1) -> int:
    """How many levels to write: all `stored` ones if None.

    Raises:
      UserError: the codec has not as many, or needs more.
    """
    if levels is not None and not least <= levels <= stored:
        raise UserError(
            f"the codec has {stored} levels and needs {least}; {levels} were asked for",
            f"ask for {least} to {stored} levels",
        )
    return stored if levels is None else levels


def own(x: Any, dtype: Any) -> jax.Array:
    """A copy. On CPU, jax may read a numpy array in place, later than the call returns: a caller
    who fills its buffer again would change what is still to be computed."""
    return jnp.array(x, dtype, copy=True)


def keep(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """x [B, T, ...] with zeros beyond lengths int [B]."""
    return jnp.where(within(x, lengths), x, 0)


def whole_frames(audio: jax.Array, lengths: jax.Array, frame: int) -> tuple[jax.Array, jax.Array]:
    """Audio [B, n], lengths [B] -> both with silence until every row is a multiple of `frame`."""
    audio = jnp.pad(keep(audio, lengths), ((0, 0), (0, -audio.shape[1] % frame)))
    return audio, -(-lengths // frame) * frame
