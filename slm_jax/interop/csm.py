"""Sesame's CSM from its published folder: config.json and safetensors.

Source: `CsmForConditionalGeneration` of transformers (sesame/csm-1b). The Mimi codec beside it has
a reader of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_jax.interop import families, grid_weights, hf_config
from slm_jax.interop.grid_weights import Row
from slm_jax.nn import tree
from slm_jax.nn.backbone_config import BackboneConfig
from slm_jax.nn.depth_config import DepthConfig
from slm_jax.nn.rope import RopeScaling

_LENGTH = 8192  # of the context that Llama 3.1 stretched; scalings are told in its terms
_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
_SHARED = "depth_decoder.model.embed_tokens.weight"  # the same array; files have either or both


class CsmSizes(NamedTuple):
    """Sizes of a published CSM.

    Attributes:
      backbone: its vocabulary is the text's.
      depth: over all levels but the first.
      codebooks: levels.
      vocab: ids of each, of which few beside the codes are in use.
    """

    backbone: BackboneConfig
    depth: DepthConfig
    codebooks: int
    vocab: int


def csm_sizes(folder: str | Path) -> CsmSizes:
    """Reads config.json.

    Raises:
      UserError: no such file, another model, or a trait that `GridLM` lacks.
    """
    folder = Path(folder)
    path, found = folder / "config.json", grid_weights.fields(folder, "csm")
    backbone = hf_config.decoder_config(path, "LlamaForCausalLM", found)
    inner = hf_config.decoder_config(path, "LlamaForCausalLM", found["depth_decoder_config"])
    names = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
    depth = DepthConfig(
        **{name: getattr(inner, name) for name in (*names, "norm_eps", "rope_theta")},
        condition="prefix",
        rope_scaling=_in_context(inner.rope_scaling),
        shared_tables=True,
    )
    backbone = dataclasses.replace(
        backbone,
        vocab_size=found["text_vocab_size"],
        rope_scaling=_in_context(backbone.rope_scaling),
        tie_embeddings=True,  # no head: the text is never predicted
    )
    return CsmSizes(backbone, depth, found["num_codebooks"], found["vocab_size"])


def load_csm(
    folder: str | Path,
    backbone: BackboneConfig,
    depth: DepthConfig,
    like: tree.Params,
    dtype: str = "float32",
) -> tree.Params:
    """Reads a published CSM.

    Args:
      folder: has config.json and one or several *.safetensors.
      backbone, depth: of the system that it is to run in.
      like: parameters of the system's `GridLM`, abstract or concrete.
      dtype: what the weights are stored in.

    Returns:
      The parameters of the `GridLM`.

    Raises:
      UserError: the sizes or the traits are not those of the system; weights that are missing,
        unexpected or misshapen (before anything is loaded); a truncated file.
    """
    sizes = csm_sizes(folder)
    grid_weights.agree("backbone", sizes.backbone, backbone)
    grid_weights.agree("depth transformer", sizes.depth, depth)
    tensors = divided(grid_weights.tensors(Path(folder)), sizes)
    return grid_weights.load(table(sizes, like), tensors, like, dtype)


def table(sizes: CsmSizes, like: tree.Params) -> list[Row]:
    """Of the names that `divided` gives; as many ids of each level as `like` has."""
    params = tree.flatten(like)
    known = params["embedding/tables/0/embedding"].shape[0]
    said = params["heads/1/kernel"].shape[1]
    tables = (Row(f"embedding/tables/{k}/embedding", f"audio.{k}") for k in range(sizes.codebooks))
    depth = depth_table(sizes.codebooks - 1, said, sizes.vocab)
    return [
        Row("backbone/embedding/embedding", "embed_text_tokens.weight"),
        *(row._replace(rows=range(known), total=sizes.vocab) for row in tables),
        *grid_weights.decoder("backbone/", "backbone_model.", families.LLAMA),
        Row("heads/1/kernel", "lm_head.weight", range(said), sizes.vocab),
        *(
            row._replace(ours=f"depth/{row.ours}", theirs=f"depth_decoder.{row.theirs}")
            for row in depth
        ),
    ]


def depth_table(rows: int, ids: int, vocab: int) -> Iterator[Row]:
    """The same of `CsmDepthDecoderForCausalLM` alone, paths as `DepthTransformer` has them.

    Args:
      rows: that are predicted.
      ids: of ours, which are the first of those that are published.
      vocab: ids that are published.
    """
    yield Row("input/kernel", "model.inputs_embeds_projector.weight")
    for row in grid_weights.decoder("", "model.", families.LLAMA):
        yield row._replace(ours=row.ours.replace("/attention/", "/").replace("/mlp/", "/"))
    for k in range(rows):
        yield Row(f"heads/{k}/kernel", f"codebooks_head.{k}", range(ids), vocab)


def divided(tensors: Mapping[str, np.ndarray], sizes: CsmSizes) -> dict[str, np.ndarray]:
    """Views of published tensors, those of all levels divided: audio.{k} [V, D], and
    depth_decoder.codebooks_head.{k} [V, W] as other heads are."""
    found = {name: x for name, x in tensors.items() if not name.startswith("codec_model.")}
    shared = [found.pop(name) for name in (_TABLE, _SHARED) if name in found]
    for audio in shared[:1]:
        parts = audio.reshape(sizes.codebooks, -1, audio.shape[-1])
        found |= {f"audio.{k}": part for k, part in enumerate(parts)}
    name = "depth_decoder.codebooks_head"
    heads = found.pop(f"{name}.weight", ())
    return found | {f"{name}.{k}": head.T for k, head in enumerate(heads)}


def _in_context(scaling: RopeScaling | None) -> RopeScaling | None:
    """The same scaling in terms of a context of `_LENGTH`: only ratios to it count."""
    if scaling is None or scaling.kind != "llama3":
        return scaling
    ratio = _LENGTH / scaling.original_length
    return dataclasses.replace(
        scaling,
        low_frequency_factor=scaling.low_frequency_factor * ratio,
        high_frequency_factor=scaling.high_frequency_factor * ratio,
        original_length=_LENGTH,
    )
