"""Our own codec: causal, 20 ms frames, residual codes; small enough to be trained on a laptop.

Everything learned happens once a frame. The encoder sees the spectrum of the last two frames, the
decoder writes the spectrum of a window that ends with its frame (an inverse STFT as in Vocos,
Siuzdak 2023, arXiv 2306.00814); causal ConvNeXt stacks lie between these and a residual quantiser
(SoundStream, Zeghidour et al. 2021, arXiv 2107.03312) whose levels may be left out from the last.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors.numpy import load_file, save_file

from slm_jax.audio.features import istft
from slm_jax.errors import UserError
from slm_jax.nn import compact
from slm_jax.nn.conv import ConvNeXt
from slm_jax.nn.layers import LayerNorm, Linear
from slm_jax.nn.quantizers import RvqConfig, rvq_decode, rvq_encode
from slm_jax.nn.tree import Params, flatten
from slm_jax.tokenizers.checks import check_chunk, check_chunk_codes
from slm_jax.tokenizers.codecs.codec import (
    Codec,
    build,
    choose_levels,
    codec_spec,
    keep,
    own,
    whole_frames,
)

STARTER = Path(__file__).resolve().parents[2] / "weights" / "codec"
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
_COMPRESSION = 0.3  # power of a magnitude that the encoder sees
_REMEDY = "train one: python launch/train_codec.py --gin_file=codec.gin"


@dataclasses.dataclass(frozen=True)
class FrameCodecConfig:
    """Sizes; the default has 9 M parameters and 3 kbit/s.

    Attributes:
      sample_rate: in Hz.
      hop: samples of a frame.
      overlap: frames that a window of the decoder spans, 3 or more.
      width, mlp: of both ConvNeXt stacks.
      encoder_layers, decoder_layers: blocks of each.
      rvq: the quantiser.
    """

    sample_rate: int = 16_000
    hop: int = 320
    overlap: int = 3
    width: int = 320
    mlp: int = 960
    encoder_layers: int = 5
    decoder_layers: int = 7
    rvq: RvqConfig = RvqConfig(levels=6, codes=1024, width=32)

    def __post_init__(self):
        if min(self.hop, self.width, self.mlp, self.encoder_layers, self.decoder_layers) < 1:
            raise ValueError("FrameCodecConfig: all sizes must be positive")
        if self.overlap < 3:
            raise ValueError("FrameCodecConfig: windows must overlap by 3 frames or more")

    @property
    def window(self) -> int:
        """Samples of a window of the decoder."""
        return self.hop * self.overlap


class FrameCodecNetwork(nnx.Module):
    """Encoder, codebooks and decoder."""

    def __init__(self, config: FrameCodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, latent = config.width, config.rvq.width
        self.hear = Linear(3 * (config.hop + 1), width, bias=True, rngs=rngs)
        self.hear_norm = LayerNorm(width)
        self.encoder = ConvNeXt(width, config.mlp, config.encoder_layers, causal=True, rngs=rngs)
        self.encoder_norm = LayerNorm(width)
        self.squeeze = Linear(width, latent, bias=True, rngs=rngs)
        # Moved by averages of the latents, not by a gradient (`rvq_ema`).
        shape = (config.rvq.levels, config.rvq.codes, latent)
        self.codebooks = nnx.Param(jnp.zeros(shape))
        self.spread = Linear(latent, width, bias=True, rngs=rngs)
        self.spread_norm = LayerNorm(width)
        self.decoder = ConvNeXt(width, config.mlp, config.decoder_layers, causal=True, rngs=rngs)
        self.decoder_norm = LayerNorm(width)
        self.speak = Linear(width, 2 * (config.window // 2 + 1), bias=True, rngs=rngs)

    def encode(
        self, audio: jax.Array, lengths: jax.Array, levels: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `Codec.encode`."""
        audio, lengths = whole_frames(audio, lengths, self.config.hop)
        frames = lengths // self.config.hop
        codes = rvq_encode(self.codebooks[:levels], self.latents(audio, frames))
        return keep(codes, frames), frames

    def decode(self, codes: jax.Array, frames: jax.Array) -> jax.Array:
        """See `Codec.decode`."""
        audio = self.sound(rvq_decode(self.codebooks[...], codes), frames)
        return keep(audio, frames * self.config.hop)

    def latents(self, audio: jax.Array, frames: jax.Array) -> jax.Array:
        """Audio [B, T * hop] of int [B] frames -> [B, T, latent] before quantisation."""
        hop = self.config.hop
        chunks = audio.reshape(len(audio), -1, hop)
        before = jnp.pad(chunks[:, :-1], ((0, 0), (1, 0), (0, 0)))
        x = self._heard(jnp.concatenate([before, chunks], axis=-1))
        return self._squeezed(self.encoder(x, _mask(frames, x.shape[1])))

    def sound(self, latents: jax.Array, frames: jax.Array) -> jax.Array:
        """Latents [B, T, latent] of int [B] frames -> audio [B, T * hop].

        The last windows of a row are those of `overlap` - 1 frames more, whose latents are zero.
        """
        config, count = self.config, latents.shape[1]
        rest = config.overlap - 1
        latents = jnp.pad(keep(latents, frames), ((0, 0), (0, rest), (0, 0)))
        x = self.decoder(self._spread(latents), _mask(frames + rest, count + rest))
        # The window of a frame ends with it: its centre lies this much before `istft`'s.
        shift = config.window // 2 - config.hop
        length = shift + count * config.hop
        return istft(self._spectrum(x), config.window, config.hop, length)[:, shift:]

    def start(self, rows: int) -> StreamState:
        """Before the first frame of so many streams."""
        config = self.config
        return StreamState(
            jnp.zeros((rows, config.hop)),
            self.encoder.start(rows),
            self.decoder.start(rows),
            jnp.zeros((rows, config.window - config.hop)),
        )

    def encode_frames(
        self, state: StreamState, audio: jax.Array, levels: int
    ) -> tuple[jax.Array, StreamState]:
        """Whole frames [B, n] -> codes [B, n / hop, levels]."""
        chunks = audio.reshape(len(audio), -1, self.config.hop)

        def step(state: StreamState, chunk: jax.Array) -> tuple[StreamState, jax.Array]:
            x = self._heard(jnp.concatenate([state.audio, chunk], axis=-1))
            x, past = self.encoder.step(x, state.encoder)
            codes = rvq_encode(self.codebooks[:levels], self._squeezed(x))
            return state._replace(audio=chunk, encoder=past), codes

        state, codes = jax.lax.scan(step, state, jnp.swapaxes(chunks, 0, 1))
        return jnp.swapaxes(codes, 0, 1), state

    def decode_frames(self, state: StreamState, codes: jax.Array) -> tuple[jax.Array, StreamState]:
        """Codes [B, T, K'] -> audio [B, T * hop], late by `overlap` - 1 frames."""
        return self._overlap(state, rvq_decode(self.codebooks[...], codes))

    def finish(self, state: StreamState) -> jax.Array:
        """What is still to come after the last frame: [B, (overlap - 1) * hop]."""
        rest = jnp.zeros((len(state.audio), self.config.overlap - 1, self.config.rvq.width))
        return self._overlap(state, rest)[0]

    def _overlap(self, state: StreamState, latents: jax.Array) -> tuple[jax.Array, StreamState]:
        hop, window = self.config.hop, self.config.window
        hann = 0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(window) / window)
        weight = 0.375 * self.config.overlap  # what squared windows add up to everywhere

        def step(state: StreamState, latent: jax.Array) -> tuple[StreamState, jax.Array]:
            x, past = self.decoder.step(self._spread(latent), state.decoder)
            piece = jnp.fft.irfft(self._spectrum(x), n=window, axis=-1) * hann / weight
            sums = jnp.pad(state.sums, ((0, 0), (0, hop))) + piece
            return state._replace(decoder=past, sums=sums[:, hop:]), sums[:, :hop]

        state, audio = jax.lax.scan(step, state, jnp.swapaxes(latents, 0, 1))
        return jnp.swapaxes(audio, 0, 1).reshape(len(latents), -1), state

    def _heard(self, window: jax.Array) -> jax.Array:
        """Two frames [..., 2 * hop] -> [..., width]: their spectrum, magnitudes compressed, and
        the logs of these."""
        count = window.shape[-1]
        hann = 0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(count) / count)
        spectrum = jnp.fft.rfft(window * hann, axis=-1)
        power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2 + 1e-8
        small = spectrum * power ** ((_COMPRESSION - 1) / 2)
        parts = [jnp.real(small), jnp.imag(small), 0.1 * jnp.log(power)]
        return self.hear_norm(self.hear(jnp.concatenate(parts, axis=-1)))

    def _squeezed(self, x: jax.Array) -> jax.Array:
        return self.squeeze(self.encoder_norm(x))

    def _spread(self, latents: jax.Array) -> jax.Array:
        return self.spread_norm(self.spread(latents))

    def _spectrum(self, x: jax.Array) -> jax.Array:
        loud, phase = jnp.split(self.speak(self.decoder_norm(x)), 2, axis=-1)
        # exp is capped: one bad frame must not blow up the loss (as in Vocos' ISTFTHead).
        loud = jnp.minimum(jnp.exp(loud), 1e2)
        return jax.lax.complex(loud * jnp.cos(phase), loud * jnp.sin(phase))


class StreamState(NamedTuple):
    """What streams remember: the last frame [B, hop], the stacks' pasts, and the sum of the windows
    that reach beyond what was given out [B, window - hop]."""

    audio: jax.Array
    encoder: jax.Array
    decoder: jax.Array
    sums: jax.Array


class FrameCodec(Codec):
    """The codec with its weights; also as a stream, which gives the same as whole rows do, later by
    `delay` samples.

    Attributes:
      frame: samples of one frame.
      delay: samples that a stream's audio comes late; `decode` of whole rows is in time.
    """

    longest = 3600.0  # everything is at the frame rate

    def __init__(self, network: FrameCodecNetwork, levels: int):
        config = network.config
        spec = codec_spec(
            "codec",
            network,
            (config.rvq.codes,) * levels,
            config.sample_rate / config.hop,
            lookahead=0.0,
        )
        super().__init__(network, spec, config.sample_rate, levels=levels)
        self.delay = config.window - config.hop
        self.frame, self._start = config.hop, network.start
        self._encode_step = self.jit("encode_frames", levels=levels)
        self._decode_step = self.jit("decode_frames")
        self._finish = self.jit("finish")

    @classmethod
    def load(cls, folder: Path | str | None = None, levels: int | None = None) -> FrameCodec:
        """Reads what `save_codec` wrote.

        Args:
          folder: where it is; by default the starter.
          levels: how many levels to write, the coarse ones; all if None.

        Raises:
          UserError: a file is missing or damaged, or they do not fit.
        """
        network = load_network(folder)
        return cls(network, choose_levels(levels, network.config.rvq.levels))

    def init_state(self, batch: int) -> StreamState:
        """State before the first frame of so many streams."""
        return self._start(batch)

    def encode_step(self, state: StreamState, audio: jax.Array) -> tuple[jax.Array, StreamState]:
        """Encodes the next frames of every stream.

        Args:
          state: of `init_state` or of the last step.
          audio: float32 [B, n], one or more whole frames.

        Returns:
          codes: int32 [B, n / hop, K], and the state for the next step.

        Raises:
          ValueError: `n` is not a whole number of frames, or another shape or type.
          UserError: samples that are not finite or far too loud.
        """
        check_chunk(audio, len(state.audio))
        audio = own(audio, jnp.float32)
        if audio.shape[1] % self.frame or not audio.shape[1]:
            raise ValueError(f"a chunk is whole frames of {self.frame}, got {audio.shape[1]}")
        return self._encode_step(state, audio)

    def decode_step(self, state: StreamState, codes: jax.Array) -> tuple[jax.Array, StreamState]:
        """Codes int [B, T, K'] of the next frames -> float32 [B, T * hop] that end `delay` samples
        before these frames do, and the state for the next step.

        Raises:
          ValueError: shapes, types or levels that do not fit, or codes out of range.
        """
        check_chunk_codes(codes, len(state.audio), self.spec.vocab)
        return self._decode_step(state, own(codes, jnp.int32))

    def flush(self, state: StreamState) -> jax.Array:
        """The last `delay` samples of every stream, [B, delay]."""
        return self._finish(state)


def load_network(folder: Path | str | None = None) -> FrameCodecNetwork:
    """The network that `save_codec` wrote; by default the starter's.

    Raises:
      UserError: a file is missing or damaged, or they do not fit.
    """
    folder = Path(folder or STARTER)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise UserError(f"no codec in {folder}: {name} is missing", _REMEDY)
    config = _read_config(folder / CONFIG)
    try:
        flat = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own bare exception
        raise UserError(f"{folder / WEIGHTS} is damaged: {error}", "restore it") from error
    weights = compact.unpack(flat)
    return build(lambda: FrameCodecNetwork(config, rngs=nnx.Rngs(0)), weights)


def save_codec(folder: Path, config: FrameCodecConfig, params: Params) -> None:
    """Writes config.json and weights.safetensors (`compact`) for `FrameCodec.load`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(compact.pack(flatten(params)), folder / WEIGHTS)
    text = json.dumps(dataclasses.asdict(config), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _read_config(path: Path) -> FrameCodecConfig:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return FrameCodecConfig(**data | {"rvq": RvqConfig(**data["rvq"])})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not the configuration of a codec: {error!r}", _REMEDY
        ) from error


def _mask(frames: jax.Array, count: int) -> jax.Array:
    return (jnp.arange(count) < frames[:, None]).astype(jnp.float32)
