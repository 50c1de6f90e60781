"""MusicGen's decoder from its published folder: config.json and safetensors.

Source: `MusicgenForConditionalGeneration` of transformers (facebook/musicgen-small, -medium,
-large and their stereo forms). The text encoder and the codec beside it are left alone: EnCodec has
a reader of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import grid_weights
from slm_jax.interop.grid_weights import Row
from slm_jax.nn import tree
from slm_jax.nn.cross_decoder_config import CrossDecoderConfig

OTHERS = ("text_encoder.", "audio_encoder.")
DERIVED = "decoder.model.decoder.embed_positions.weights"  # older files store the sinusoids

_TOP, _LAYER = "decoder.model.decoder.", "decoder.model.decoder.layers.{layer}."
_NORMS = (
    (f"{_TOP}layer_norm", "second/norm"),
    (f"{_LAYER}self_attn_layer_norm", "second/layers/attention_norm"),
    (f"{_LAYER}encoder_attn_layer_norm", "second/layers/memory_norm"),
    (f"{_LAYER}final_layer_norm", "second/layers/mlp_norm"),
)
_ATTENTIONS = (("self_attn", "attention"), ("encoder_attn", "memory_attention"))
TRANSFORMER = (
    *(Row(f"{ours}/scale", f"{theirs}.weight") for theirs, ours in _NORMS),
    *(Row(f"{ours}/bias", f"{theirs}.bias") for theirs, ours in _NORMS),
    *(
        Row(f"second/layers/{ours}/{name[0]}/kernel", f"{_LAYER}{theirs}.{name}_proj.weight")
        for theirs, ours in _ATTENTIONS
        for name in ("q", "k", "v", "out")
    ),
    Row("second/layers/mlp/up/kernel", f"{_LAYER}fc1.weight"),
    Row("second/layers/mlp/down/kernel", f"{_LAYER}fc2.weight"),
)


class MusicgenSizes(NamedTuple):
    """Sizes of a published MusicGen.

    Attributes:
      decoder: of the transformer.
      codebooks: K times V, ids that a head predicts; the tables of embeddings have one more id, V,
        for what is empty (begin and padding).
      text_width: width of the text encoder's states. Where it differs from the decoder's, a linear
        layer brings them to it.
    """

    decoder: CrossDecoderConfig
    codebooks: tuple[int, ...]
    text_width: int


def musicgen_sizes(folder: str | Path) -> MusicgenSizes:
    """Reads config.json.

    Raises:
      UserError: no such file, another model, or a trait that `CrossDecoder` lacks.
    """
    path, fields = Path(folder) / "config.json", grid_weights.fields(Path(folder), "musicgen")
    try:
        return _sizes(fields)
    except ValueError as error:
        raise UserError(f"{path}: {error}", "use one of the published models") from None


def load_musicgen(
    folder: str | Path, decoder: CrossDecoderConfig, like: tree.Params, dtype: str = "float32"
) -> tree.Params:
    """Reads the decoder of a published MusicGen.

    Args:
      folder: has config.json and one or several *.safetensors.
      decoder: of the system that it is to run in.
      like: parameters of the system's `GridLM`, abstract or concrete.
      dtype: what the weights are stored in.

    Returns:
      The parameters of the `GridLM` but for "backbone": there the text encoder is a T5.

    Raises:
      UserError: the sizes are not those of the system; weights that are missing, unexpected or
        misshapen (before anything is loaded); a truncated file.
    """
    sizes = musicgen_sizes(folder)
    grid_weights.agree("decoder", sizes.decoder, decoder)
    tensors = chosen(grid_weights.tensors(Path(folder)))
    return grid_weights.load(table(sizes), tensors, beside_text(like), dtype)


def table(sizes: MusicgenSizes) -> list[Row]:
    """Of the published names."""
    found = list(TRANSFORMER)
    for k in range(len(sizes.codebooks)):
        found.append(Row(f"embedding/tables/{k}/embedding", f"{_TOP}embed_tokens.{k}.weight"))
        found.append(Row(f"heads/{k}/kernel", f"decoder.lm_heads.{k}.weight"))
    if sizes.text_width != sizes.decoder.width:
        found.append(Row("feed/states/kernel", "enc_to_dec_proj.weight"))
        found.append(Row("feed/states/bias", "enc_to_dec_proj.bias"))
    return found


def chosen(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the decoder."""
    return {
        name: array
        for name, array in tensors.items()
        if not name.startswith(OTHERS) and name != DERIVED
    }


def beside_text(like: tree.Params) -> tree.Params:
    """The parameters of a `GridLM` without its text LLM."""
    return {name: part for name, part in like.items() if name != "backbone"}


def _sizes(fields: Mapping[str, Any]) -> MusicgenSizes:
    decoder = fields["decoder"]
    for name, value in (("activation_function", "gelu"), ("cross_attention_hidden_size", None)):
        if decoder.get(name, value) != value:
            raise ValueError(f"{name} = {decoder[name]} is not supported")
    width = decoder["hidden_size"]
    config = CrossDecoderConfig(
        width=width,
        layers=decoder["num_hidden_layers"],
        heads=decoder["num_attention_heads"],
        mlp_width=decoder["ffn_dim"],
        memory_width=width,
    )
    codebooks = (decoder["vocab_size"],) * decoder["num_codebooks"]
    return MusicgenSizes(config, codebooks, fields["text_encoder"]["d_model"])
