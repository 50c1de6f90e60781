"""Self-supervised speech encoders: wav2vec 2.0, HuBERT and WavLM, base and large, as one network.

Papers and reference classes are named in ssl_layers.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.interop import ssl_encoder as checkpoints
from slm_jax.nn.layers import Embedding, LayerNorm, Linear, scan_layers, stack
from slm_jax.nn.tree import flatten, load_flat, merge, pure_params
from slm_jax.tokenizers.ssl_layers import (
    ConvLayer,
    Count,
    Layer,
    PositionConv,
    frames_out,
    moments,
    relative_buckets,
)

_SILENCE = 1e-7  # added to the variance of the audio, as Wav2Vec2FeatureExtractor does


@dataclasses.dataclass(frozen=True)
class SslConfig:
    """Sizes and traits of an encoder; the default is HuBERT base.

    Attributes:
      width, layers, heads, mlp_width: of the transformer.
      conv_widths, conv_kernels, conv_strides: of the convolutions that read the audio.
      conv_bias: whether these have biases.
      conv_norm: "group" norms the first of them over time, "layer" all of them over channels.
      position_kernel, position_groups: of the convolution that tells positions.
      pre_norm: norms stand before each half of a layer (large models), not behind it.
      relative_buckets: of WavLM's bias by relative position; 0 for models without.
      relative_distance: frames from which on all are in the last bucket.
      normalise: the audio is brought to zero mean and unit variance.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    position_kernel: int = 128
    position_groups: int = 16
    pre_norm: bool = False
    relative_buckets: int = 0
    relative_distance: int = 800
    normalise: bool = True

    def __post_init__(self):
        if not len(self.conv_widths) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise ValueError("SslConfig: every convolution needs a width, a kernel and a stride")
        if self.width % self.heads or self.width % self.position_groups:
            raise ValueError("SslConfig: width must be a multiple of heads and position_groups")
        if self.conv_norm not in ("group", "layer"):
            raise ValueError(f"SslConfig: conv_norm is group or layer, not {self.conv_norm}")

    def frames(self, samples: Count) -> Count:
        """Frames of so many samples: one each 20 ms, of 25 ms (published sizes); 0 of too few."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = frames_out(samples, kernel, stride)
        return samples


class SslEncoder(nnx.Module):
    """Audio to features at 50 Hz; each of them depends on the whole of its row."""

    def __init__(self, config: SslConfig, rngs: nnx.Rngs):
        convs, inputs = [], 1
        sizes = zip(config.conv_widths, config.conv_kernels, config.conv_strides, strict=True)
        for index, (outputs, kernel, stride) in enumerate(sizes):
            norm = config.conv_norm if config.conv_norm == "layer" or index == 0 else None
            convs.append(
                ConvLayer(
                    inputs,
                    outputs,
                    kernel=kernel,
                    stride=stride,
                    bias=config.conv_bias,
                    norm=norm,
                    rngs=rngs,
                )
            )
            inputs = outputs
        self.convs = nnx.List(convs)
        self.projection_norm = LayerNorm(inputs, axes=(None,))
        self.projection = Linear(inputs, config.width, bias=True, axes=(None, "embed"), rngs=rngs)
        self.position = PositionConv(
            config.width, kernel=config.position_kernel, groups=config.position_groups, rngs=rngs
        )
        self.norm = None if config.pre_norm else LayerNorm(config.width)
        gated = config.relative_buckets > 0
        self.layers = stack(
            lambda rngs: Layer(
                config.width,
                config.heads,
                config.mlp_width,
                pre_norm=config.pre_norm,
                gated=gated,
                rngs=rngs,
            ),
            config.layers,
            rngs,
        )
        if gated:
            buckets = config.relative_buckets
            self.relative = Embedding(buckets, config.heads, axes=(None, None), rngs=rngs)
        self.config = config

    @classmethod
    def load(cls, folder: Path | str) -> SslEncoder:
        """Reads a Hugging Face folder: config.json, model.safetensors, preprocessor_config.json.

        Raises:
          UserError: the folder holds no (whole) encoder of the three kinds.
        """
        folder = Path(folder)
        try:
            config = SslConfig(**checkpoints.read_config(folder))
        except ValueError as error:
            raise UserError(f"{folder}: {error}", checkpoints.REMEDY) from None
        graphdef, abstract = pure_params(nnx.eval_shape(lambda: cls(config, nnx.Rngs(0))))
        shapes = {name: array.shape for name, array in flatten(abstract).items()}
        params = load_flat(abstract, checkpoints.read_weights(folder, shapes))
        return merge(graphdef, jax.tree.map(jnp.asarray, params))

    def features(self, audio: jax.Array, lengths: jax.Array, layer: int) -> jax.Array:
        """What `layer` layers make of the audio; only these are computed.

        A row gives the same features alone and in any batch. In transformers this holds for models
        with conv_norm "layer" and an attention mask; those with "group" let the padding in.

        Args:
          audio: float [B, n] at 16 kHz, in [-1, 1]; whatever lies behind a row's end is ignored.
          lengths: int [B], samples of each row.
          layer: 0 for the input of the first layer, up to `config.layers`. These are the
            `hidden_states` of transformers 5 and the layers that fairseq extracts: the norm that
            models with pre_norm have behind the last layer, and which transformers 4 applies to
            the last of its `hidden_states`, is left out.

        Returns:
          float32 [B, config.frames(n), D]; row i has config.frames(lengths[i]) frames, zeros
          follow.

        Raises:
          ValueError: no such layer, or all of the audio is too short for one frame.
        """
        if not 0 <= layer <= self.config.layers:
            raise ValueError(f"layer {layer} of an encoder with {self.config.layers}")
        if not self.config.frames(audio.shape[1]):
            raise ValueError(f"{audio.shape[1]} samples are too short for one frame")
        x = self._prepare(audio.astype(jnp.float32), lengths)[..., None]
        for conv in self.convs:
            x, lengths = conv(x, lengths)
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        x = self.projection(self.projection_norm(x)) * valid[..., None]
        x += self.position(x)
        if self.norm is not None:
            x = self.norm(x)
        bias = self._relative_bias(x.shape[1])
        graphdef, params = pure_params(self.layers)
        used = merge(graphdef, jax.tree.map(lambda weight: weight[:layer], params))
        x, _ = scan_layers(used, lambda block, x, _: (block(x, valid, bias), None), x)
        return x * valid[..., None]

    def _prepare(self, audio: jax.Array, lengths: jax.Array) -> jax.Array:
        """[B, n] -> [B, n]: normalised if the model wants it, zeros behind the end."""
        valid = jnp.arange(audio.shape[1]) < lengths[:, None]
        audio = jnp.where(valid, audio, 0.0)
        if not self.config.normalise:
            return audio
        mean, variance = (part[..., 0] for part in moments(audio[..., None], valid))
        return (audio - mean) * jax.lax.rsqrt(variance + _SILENCE) * valid

    def _relative_bias(self, frames: int) -> jax.Array | None:
        """[H, T, T], the same for all layers before their gates; None for models without."""
        config = self.config
        if not config.relative_buckets:
            return None
        buckets = relative_buckets(frames, config.relative_buckets, config.relative_distance)
        return jnp.moveaxis(self.relative(buckets), -1, 0)
