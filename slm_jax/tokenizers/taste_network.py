"""TASTE's trainable parts as pure functions, and the batches that they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.nn.quantizers import (
    FsqConfig,
    Quantized,
    RvqConfig,
    fsq,
    fsq_decode,
    rvq,
    rvq_decode,
    rvq_init,
)
from slm_jax.nn.tree import Params, merge, pure_params
from slm_jax.tokenizers.taste_decoder import (
    TasteDecoder,
    TasteDecoderConfig,
    monotonic_alignment,
)
from slm_jax.tokenizers.taste_encoder import Aggregator, Prosody, SpeakerEncoder, word_mean
from slm_jax.tokenizers.taste_listen import Heard, Listener
from slm_jax.tokenizers.taste_prosody import word_prosody
from slm_jax.tokenizers.vocoder import Vocoder, VocoderConfig
from slm_jax.tokenizers.whisper import WhisperConfig


@dataclasses.dataclass(frozen=True)
class TasteConfig:
    """Sizes of the starter; `gin/taste_paper.gin` has the paper's.

    Attributes:
      value_layers: Whisper encoder layers below the aggregator's values; of several, a mixture is
        learned.
      aggregator_layers: which Whisper decoder layers the aggregator starts from.
      pooling: a word's latent is the "mean" of its tokens' (the paper's), or that of its "last".
      prosody: whether latents also hear each word's duration, pitch and energy (`taste_prosody`).
      quantizer: "rvq" or "fsq"; the config of that name counts.
      speaker_width: of the utterance's speaker vector.
    """

    value_layers: tuple[int, ...] = (2,)
    aggregator_layers: tuple[int, ...] = (0, 3)
    pooling: Literal["mean", "last"] = "mean"
    prosody: bool = True
    quantizer: Literal["rvq", "fsq"] = "fsq"
    rvq: RvqConfig = RvqConfig(levels=4, codes=64, width=64)
    fsq: FsqConfig = FsqConfig(levels=4, grid=(16, 4))
    speaker_width: int = 24
    decoder: TasteDecoderConfig = TasteDecoderConfig()
    vocoder: VocoderConfig = VocoderConfig()

    def __post_init__(self):
        if not self.aggregator_layers or not self.value_layers or min(self.value_layers) < 0:
            raise ValueError("TasteConfig: aggregator_layers and value_layers must name layers")
        if self.speaker_width < 1:
            raise ValueError("TasteConfig: speaker_width must be positive")

    @property
    def latent(self) -> int:
        return self.rvq.width if self.quantizer == "rvq" else self.fsq.width

    @property
    def vocab(self) -> tuple[int, ...]:
        return self.rvq.vocab if self.quantizer == "rvq" else self.fsq.vocab


class TasteNetwork:
    """The trainable parts as pure functions of one parameter tree
    {"aggregator", "prosody", "speaker", "decoder", "vocoder", "quantizer"}."""

    def __init__(self, config: TasteConfig, whisper: WhisperConfig):
        self.config = config
        parts = nnx.eval_shape(lambda: self._modules(config, whisper, nnx.Rngs(0)))
        self._graphs = {name: pure_params(part)[0] for name, part in parts.items()}
        self._whisper = whisper

    @staticmethod
    def _modules(config: TasteConfig, whisper: WhisperConfig, rngs: nnx.Rngs) -> dict[str, Any]:
        mel = config.vocoder.mel
        layers = len(config.aggregator_layers)
        groups = config.fsq.levels if config.quantizer == "fsq" else 0
        return {
            "aggregator": Aggregator(
                whisper, layers, len(config.value_layers), config.latent, rngs=rngs
            ),
            "prosody": Prosody(config.latent, groups, rngs=rngs),
            "speaker": SpeakerEncoder(
                len(config.value_layers) * whisper.width, config.speaker_width, rngs=rngs
            ),
            "decoder": TasteDecoder(
                config.decoder, mel, config.latent, config.speaker_width, rngs=rngs
            ),
            "vocoder": Vocoder(config.vocoder, rngs=rngs),
        }

    def init(self, seed: int) -> Params:
        """Random parameters, and empty codebooks."""
        modules = self._modules(self.config, self._whisper, nnx.Rngs(seed))
        params = {name: pure_params(module)[1] for name, module in modules.items()}
        quantizer = rvq_init(self.config.rvq) if self.config.quantizer == "rvq" else {}
        return params | {"quantizer": quantizer}

    def part(self, params: Params, name: str) -> Any:
        """One module with its parameters, for use inside jit."""
        return merge(self._graphs[name], params[name])

    def latents(
        self, params: Params, batch: dict[str, jax.Array], words: int, durations: jax.Array
    ) -> jax.Array:
        """[B, W, latent] before quantisation.

        Args:
          batch: of `pad_heard`.
          words: W.
          durations: int [B, N], frames of each symbol (`aligned`).
        """
        # Features travel as float16; nothing is computed in it.
        keys, values = (batch[name].astype(jnp.float32) for name in ("keys", "values"))
        tokens = self.part(params, "aggregator")(batch["tokens"], keys, values, batch["audio_mask"])
        index = batch["token_words"]
        if self.config.pooling == "last":
            following = jnp.pad(index[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
            index = jnp.where(index == following, -1, index)
        latents = word_mean(tokens, index, words)
        if self.config.prosody:
            said = word_prosody(
                durations,
                batch["ids"],
                batch["words"],
                words,
                batch["mel"],
                batch["pitch"],
                batch["voiced"],
            )
            latents += self.part(params, "prosody")(said)
        if self.config.quantizer == "fsq":
            return latents
        # Unit variance, so that codebooks and commitment have one scale throughout training.
        return latents * jax.lax.rsqrt(jnp.mean(latents**2, axis=-1, keepdims=True) + 1e-6)

    def speaker(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """[B, speaker_width], of unit length."""
        return self.part(params, "speaker")(
            batch["values"].astype(jnp.float32).reshape(*batch["audio_mask"].shape, -1),
            batch["audio_mask"],
            batch["pitch"],
            batch["voiced"],
        )

    def quantize(
        self, params: Params, latents: jax.Array, mask: jax.Array, used: jax.Array | int
    ) -> Quantized:
        """Straight-through; see `slm_jax.nn.quantizers`."""
        if self.config.quantizer == "fsq":
            return fsq(self.config.fsq, latents)
        return rvq(params["quantizer"]["codebooks"], latents, mask, used)

    def dequantize(self, params: Params, codes: jax.Array) -> jax.Array:
        """codes [..., K] -> latents [..., latent]."""
        if self.config.quantizer == "fsq":
            return fsq_decode(self.config.fsq, codes)
        return rvq_decode(params["quantizer"]["codebooks"], codes)


def aligned(prior: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Frames of each symbol, int32 [B, N]: the best monotonic path of the mels through their
    priors [B, N, n_mels]; spoken symbols are kept within reach of where the ASR heard their
    word."""
    mel = batch["mel"]
    cross = jnp.einsum("bnm,btm->bnt", prior, mel)
    scores = cross - 0.5 * jnp.sum(prior**2, -1)[..., None]
    time = jnp.arange(mel.shape[1])
    low, high = batch["window"][..., :1], batch["window"][..., 1:]
    outside = jnp.maximum(jnp.maximum(low - time, time - high + 1), 0)
    scores = scores - 20.0 * jnp.minimum(outside, 50)
    return monotonic_alignment(scores, (batch["ids"] > 0).sum(1), batch["frames"])


def pad_heard(
    heard: Sequence[Heard], listener: Listener, rows: int, frames: int, length: int, tokens: int
) -> dict[str, np.ndarray]:
    """A batch of what the encoder side gets, zero padded: `rows` utterances of at most `frames` mel
    frames, `length` symbols and `tokens` Whisper tokens. Whisper's frames, a quarter more in 16 ms
    hops, follow from these."""
    hop = listener.mel.hop / listener.mel.rate
    times = int(frames * hop * 50) + 4
    width, bands = heard[0].keys.shape[1], heard[0].mel.shape[1]
    batch = {
        "keys": np.zeros((rows, times, width), np.float16),
        "values": np.zeros((rows, times, *heard[0].values.shape[1:]), np.float16),
        "audio_mask": np.zeros((rows, times), np.float32),
        "token_words": np.full((rows, tokens), -1, np.int32),
        "ids": np.zeros((rows, length), np.int32),
        "words": np.zeros((rows, length), np.int32),
        "window": np.zeros((rows, length, 2), np.int32),
        "mel": np.zeros((rows, frames, bands), np.float32),
        "pitch": np.zeros((rows, frames), np.float32),
        "voiced": np.zeros((rows, frames), np.float32),
        "frames": np.ones(rows, np.int32),
    }
    ids = np.full((rows, tokens), listener.text.end, np.int32)
    for row, h in enumerate(heard):
        t, s, n, f = len(h.keys), len(h.tokens), len(h.text.ids), len(h.mel)
        batch["keys"][row, :t], batch["values"][row, :t] = h.keys, h.values
        batch["audio_mask"][row, :t] = 1
        ids[row, :s], batch["token_words"][row, :s] = h.tokens, h.token_words
        batch["ids"][row, :n], batch["words"][row, :n] = h.text
        batch["window"][row, :n] = h.window
        batch["mel"][row, :f], batch["pitch"][row, :f] = h.mel, h.pitch
        batch["voiced"][row, :f], batch["frames"][row] = h.voiced, f
    return batch | {"tokens": listener.embed(ids)}


def bucket(size: int, step: int) -> int:
    """The next multiple of `step`: few shapes, few compilations."""
    return int(-(-size // step) * step)
