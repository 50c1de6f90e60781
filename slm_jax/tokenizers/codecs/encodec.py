"""EnCodec at 24 kHz (Défossez et al. 2022, arXiv 2210.13438): causal SEANet convolutions with an
LSTM, and a residual quantiser. Same function as EncodecModel of transformers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from flax import nnx

from slm_jax.interop import codec_names
from slm_jax.interop import codecs as checkpoints
from slm_jax.nn.lstm import ResidualLstm
from slm_jax.nn.streaming import Run
from slm_jax.tokenizers.codecs.codec import build, choose_levels, codec_spec
from slm_jax.tokenizers.codecs.rvq import ResidualCodebooks
from slm_jax.tokenizers.codecs.seanet import SeanetConfig, SeanetDecoder, SeanetEncoder
from slm_jax.tokenizers.codecs.stream import StreamingCodec, StreamingNetwork


@dataclasses.dataclass(frozen=True)
class EncodecConfig:
    """Sizes; the default is the published one.

    Attributes:
      sample_rate: in Hz.
      seanet: the convolutions.
      lstm_layers: in encoder and decoder each.
      levels, codes: of the quantiser.
    """

    sample_rate: int = 24_000
    seanet: SeanetConfig = SeanetConfig(
        width=128,
        filters=32,
        ratios=(8, 5, 4, 2),
        last_kernel=7,
        shortcut=True,
        pad_mode="reflect",
    )
    lstm_layers: int = 2
    levels: int = 32
    codes: int = 1024

    @property
    def frame(self) -> int:
        """Samples of one frame."""
        return self.seanet.hop


class EncodecNetwork(StreamingNetwork):
    """Both halves and the quantiser."""

    def __init__(self, config: EncodecConfig, *, rngs: nnx.Rngs):
        seanet = config.seanet
        self.config = config

        def lstm() -> ResidualLstm:
            return ResidualLstm(seanet.widest, config.lstm_layers, rngs=rngs)

        self.encoder = SeanetEncoder(seanet, lstm(), rngs=rngs)
        self.quantizer = ResidualCodebooks(
            config.levels, config.codes, seanet.width, seanet.width, rngs=rngs
        )
        self.decoder = SeanetDecoder(seanet, lstm(), rngs=rngs)

    def to_codes(self, audio: jax.Array, levels: int, run: Run) -> jax.Array:
        """[B, n] -> int32 [B, frames, levels]."""
        return self.quantizer.encode(self.encoder(audio[..., None], run), levels)

    def to_audio(self, codes: jax.Array, run: Run) -> jax.Array:
        """int [B, frames, K'] -> [B, n]."""
        return self.decoder(self.quantizer.decode(codes), run)[..., 0]


class Encodec(StreamingCodec):
    """EnCodec with its weights.

    Audio and latents are mirrored at their start, so that the first frames look ahead to frame
    `first_frames`; no later frame depends on a sample after its own.
    """

    def __init__(self, network: EncodecNetwork, levels: int):
        config = network.config
        clock, first = config.sample_rate / config.frame, config.seanet.first_frames
        ahead = (first - 1) / clock
        spec = codec_spec("encodec", network, (config.codes,) * levels, clock, lookahead=ahead)
        super().__init__(network, spec, config.sample_rate, levels, first_frames=first)

    @classmethod
    def load(cls, folder: Path | str, levels: int | None = None) -> Encodec:
        """Reads a folder in the format of facebook/encodec_24khz: config.json and safetensors.

        Args:
          folder: where they are.
          levels: how many levels to write, the coarse ones; all if None. Each is 750 bit/s in the
            published model, whose bandwidths of 1.5 to 24 kbit/s are 2 to 32 levels.

        Raises:
          UserError: a file is missing, or it holds no (whole) EnCodec of this kind.
        """
        checkpoint = checkpoints.read(folder, codec_names.ENCODEC)
        seanet = SeanetConfig(**checkpoint.sizes["seanet"])
        config = EncodecConfig(**checkpoint.sizes | {"seanet": seanet})
        network = build(lambda: EncodecNetwork(config, rngs=nnx.Rngs(0)), checkpoint.weights)
        return cls(network, choose_levels(levels, config.levels))
