"""Qwen2.5-Omni's Talker and the text LLM that feeds it, from the published folder.

Source: `Qwen2_5OmniForConditionalGeneration` of transformers (Qwen/Qwen2.5-Omni-7B, -3B). Encoders
of sound and images and what makes a waveform of the codes are left alone. Rotary positions have
three axes there, which differ in images and video alone: in columns of text and of codes all three
count columns, and the rotation is the plain one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_jax.interop import families, grid_weights, hf_config
from slm_jax.interop.grid_weights import Row
from slm_jax.nn import tree
from slm_jax.nn.backbone_config import BackboneConfig

OTHERS = ("thinker.audio_tower.", "thinker.visual.", "token2wav.")
# transformers 5 keeps the parts of the Thinker one level deeper than the published files do.
_DEEPER = {
    "thinker.model.language_model.": "thinker.model.",
    "thinker.model.audio_tower.": "thinker.audio_tower.",
    "thinker.model.visual.": "thinker.visual.",
}


class TalkerSizes(NamedTuple):
    """Sizes of a published Qwen2.5-Omni.

    Attributes:
      thinker: the text LLM.
      talker: without a vocabulary of its own, as `SecondConfig.trunk`.
      width: of what the Talker is given, `SecondConfig.width`.
      vocab: ids of the codec, of which some are not in use.
    """

    thinker: BackboneConfig
    talker: BackboneConfig
    width: int
    vocab: int


def talker_sizes(folder: str | Path) -> TalkerSizes:
    """Reads config.json.

    Raises:
      UserError: no such file, another model, or a trait that `GridLM` lacks.
    """
    folder = Path(folder)
    path, found = folder / "config.json", grid_weights.fields(folder, "qwen2_5_omni")
    talker = found["talker_config"]
    text = found["thinker_config"]["text_config"]
    trunk = hf_config.decoder_config(path, "Qwen2ForCausalLM", talker)
    return TalkerSizes(
        hf_config.decoder_config(path, "Qwen2ForCausalLM", text),
        dataclasses.replace(trunk, vocab_size=0),
        talker["embedding_size"],
        talker["vocab_size"],
    )


def load_talker(
    folder: str | Path,
    thinker: BackboneConfig,
    talker: BackboneConfig,
    like: tree.Params,
    dtype: str = "float32",
) -> tree.Params:
    """Reads the Talker and the text LLM of a published Qwen2.5-Omni.

    Args:
      folder: has config.json and one or several *.safetensors.
      thinker, talker: of the system that it is to run in.
      like: parameters of the system's `GridLM`, abstract or concrete.
      dtype: what the weights are stored in.

    Returns:
      The parameters of the `GridLM`.

    Raises:
      UserError: the sizes or the traits are not those of the system; weights that are missing,
        unexpected or misshapen (before anything is loaded); a truncated file.
    """
    sizes = talker_sizes(folder)
    grid_weights.agree("Thinker", sizes.thinker, thinker)
    grid_weights.agree("Talker", sizes.talker, talker)
    tensors = chosen(grid_weights.tensors(Path(folder)))
    return grid_weights.load(table(sizes, like), tensors, like, dtype)


def table(sizes: TalkerSizes, like: tree.Params) -> list[Row]:
    """Of the published names; as many ids of the codec as `like` has."""
    known = tree.flatten(like)["embedding/tables/0/embedding"].shape[0]
    ids = range(known), sizes.vocab
    return [
        Row("backbone/embedding/embedding", "thinker.model.embed_tokens.weight"),
        *grid_weights.decoder("backbone/", "thinker.model.", families.QWEN2),
        Row("backbone/head/kernel", "thinker.lm_head.weight"),
        Row("embedding/tables/0/embedding", "talker.model.embed_tokens.weight", *ids),
        Row("feed/columns/kernel", "talker.thinker_to_talker_proj.weight"),
        Row("feed/columns/bias", "talker.thinker_to_talker_proj.bias"),
        *grid_weights.decoder("second/", "talker.model.", families.QWEN2),
        Row("heads/1/kernel", "talker.codec_head.weight", *ids),
    ]


def chosen(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the Talker and of the text LLM, by their published names."""
    named = {_published(name): array for name, array in tensors.items()}
    return {name: array for name, array in named.items() if not name.startswith(OTHERS)}


def _published(name: str) -> str:
    for deeper, prefix in _DEEPER.items():
        if name.startswith(deeper):
            return prefix + name.removeprefix(deeper)
    return name
