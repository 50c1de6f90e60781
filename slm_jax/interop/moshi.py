"""Moshi from its published folder, with the names of the package moshi.

Source: `LMModel` of moshi 0.2 (kyutai/moshiko-pytorch-bf16, moshika-pytorch-bf16). The Mimi codec
beside it has a reader of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import grid_weights
from slm_jax.interop.grid_weights import Row
from slm_jax.nn import tree
from slm_jax.nn.backbone_config import BackboneConfig
from slm_jax.nn.depth_config import DepthConfig

# The only form that is read: traits that config.json must name, because moshi defaults to others,
NAMED: dict[str, Any] = {
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_pos_emb": "none",
    "depformer_multi_linear": True,
    "depformer_weights_per_step": True,
}
# and those that it may leave out.
DEFAULTS: dict[str, Any] = {
    "causal": True,
    "norm_emb": False,
    "bias_proj": False,
    "layer_scale": None,
    "kv_repeat": 1,
    "cross_attention": False,
    "text_card_out": None,
    "depformer_gating": "silu",
    "depformer_norm": None,
    "depformer_layer_scale": None,
    "depformer_weights_per_step_schedule": None,
    "depformer_low_rank_embeddings": None,
    "demux_second_stream": False,
    "demux_second_text_stream": False,
    "extra_heads_num_heads": 0,
    "conditioners": None,
    "fuser": None,
    "lora": False,
    "quantize": False,
}
# Of the 7B models, whose folders may have no config.json (`loaders._lm_kwargs`).
PUBLISHED: dict[str, Any] = NAMED | {
    "dim": 4096,
    "text_card": 32000,
    "n_q": 16,
    "dep_q": 8,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "context": 3000,
    "max_period": 10000,
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}


class MoshiSizes(NamedTuple):
    """Sizes of a published Moshi.

    Attributes:
      backbone: with text_card + 1 ids, the last one INIT, which is never predicted.
      depth: over the levels that are predicted.
      codebooks: levels of audio that are read, its own before the user's.
      predicted: how many are its own.
      delays: of the text and of every level, in columns.
    """

    backbone: BackboneConfig
    depth: DepthConfig
    codebooks: int
    predicted: int
    delays: tuple[int, ...]


def moshi_sizes(folder: str | Path) -> MoshiSizes:
    """Reads config.json; without one the folder is of a 7B model.

    Raises:
      UserError: another model, or a trait that `GridLM` lacks.
    """
    return _sizes(Path(folder), _fields(Path(folder)))


def load_moshi(
    folder: str | Path,
    backbone: BackboneConfig,
    depth: DepthConfig,
    like: tree.Params,
    dtype: str = "float32",
) -> tree.Params:
    """Reads a published Moshi.

    Args:
      folder: has model.safetensors (or what config.json calls it).
      backbone, depth: of the system that it is to run in.
      like: parameters of the system's `GridLM`, abstract or concrete.
      dtype: what the weights are stored in.

    Returns:
      The parameters of the `GridLM`.

    Raises:
      UserError: the sizes or the traits are not those of the system; weights that are missing,
        unexpected or misshapen (before anything is loaded); a truncated file.
    """
    folder = Path(folder)
    found = _fields(folder)
    sizes = _sizes(folder, found)
    grid_weights.agree("backbone", sizes.backbone, backbone)
    grid_weights.agree("depth transformer", sizes.depth, depth)
    tensors = grid_weights.tensors(folder, found.get("moshi_name", "model.safetensors"))
    return grid_weights.load(table(sizes), divided(tensors, sizes.predicted), like, dtype)


def table(sizes: MoshiSizes) -> list[Row]:
    """Of the names of `LMModel.state_dict`."""
    main, layer = sizes.backbone, "transformer.layers.{layer}"
    text = main.vocab_size - 1
    width, inner = main.heads * main.head_dim, main.mlp_width
    parts = _thirds(width, main.head_dim)
    gates = {"gate": range(inner), "up": range(inner, 2 * inner)}
    return [
        Row("backbone/embedding/embedding", "text_emb.weight"),
        *(
            Row(f"embedding/tables/{k}/embedding", f"emb.{k}.weight")
            for k in range(sizes.codebooks)
        ),
        Row("backbone/layers/attention_norm/scale", f"{layer}.norm1.alpha"),
        *(
            Row(
                f"backbone/layers/attention/{name}/kernel",
                f"{layer}.self_attn.in_projs.0.weight",
                rows,
                3 * width,
            )
            for name, rows in parts.items()
        ),
        Row("backbone/layers/attention/o/kernel", f"{layer}.self_attn.out_projs.0.weight"),
        Row("backbone/layers/mlp_norm/scale", f"{layer}.norm2.alpha"),
        *(
            Row(
                f"backbone/layers/mlp/{name}/kernel",
                f"{layer}.gating.linear_in.weight",
                rows,
                2 * inner,
            )
            for name, rows in gates.items()
        ),
        Row("backbone/layers/mlp/down/kernel", f"{layer}.gating.linear_out.weight"),
        Row("backbone/norm/scale", "out_norm.alpha"),
        # The text is predicted without INIT, the last id of our table.
        Row("backbone/head/kernel", "text_linear.weight", (*range(text), -1), text),
        *(
            row._replace(ours=f"depth/{row.ours}")
            for row in depth_table(sizes.depth, sizes.predicted)
        ),
    ]


def depth_table(config: DepthConfig, rows: int) -> Iterator[Row]:
    """The same of the depth transformer alone, paths as `DepthTransformer` has them."""
    layer = "depformer.layers.{layer}"
    step, gating = ("{step}", ".{step}") if config.per_step else ("0", "")
    query, key = (heads * config.head_dim for heads in (config.heads, config.kv_heads))
    inner = config.mlp_width
    yield Row("input/kernel", f"depformer_in.{step}.weight")
    yield Row("tables/0/embedding", "depformer_text_emb.weight")
    for k in range(1, rows):
        yield Row(f"tables/{k}/embedding", f"depformer_emb.{k - 1}.weight")
    yield Row("layers/attention_norm/scale", f"{layer}.norm1.alpha")
    total, attention = query + 2 * key, f"{layer}.self_attn.in_projs.{step}.weight"
    yield Row("layers/q/kernel", attention, range(query), total)
    yield Row("layers/k/kernel", attention, range(query, query + key), total)
    yield Row("layers/v/kernel", attention, range(query + key, total), total)
    yield Row("layers/o/kernel", f"{layer}.self_attn.out_projs.{step}.weight")
    yield Row("layers/mlp_norm/scale", f"{layer}.norm2.alpha")
    gated = f"{layer}.gating{gating}.linear_in.weight"
    yield Row("layers/gate/kernel", gated, range(inner), 2 * inner)
    yield Row("layers/up/kernel", gated, range(inner, 2 * inner), 2 * inner)
    yield Row("layers/down/kernel", f"{layer}.gating{gating}.linear_out.weight")
    for k in range(rows):
        yield Row(f"heads/{k}/kernel", f"linears.{k}.weight")


def divided(tensors: Mapping[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
    """Views of published tensors as `LMModel` names them: [1, 1, D] of norms as [D], and the
    projections of attention, which older files stack over the depth steps, one a step."""
    found = {}
    for name, array in tensors.items():
        parent, _, last = name.partition(".self_attn.")
        if name.endswith(".alpha"):
            found[name] = array.reshape(-1)
        elif last in ("in_proj_weight", "in_proj.weight", "out_proj.weight"):
            count = steps if parent.startswith("depformer.") else 1
            kind = last[: last.index("_proj")]
            for step, part in enumerate(array.reshape(count, -1, array.shape[-1])):
                found[f"{parent}.self_attn.{kind}_projs.{step}.weight"] = part
        else:
            found[name] = array
    return found


def _thirds(width: int, head_dim: int) -> dict[str, Sequence[int]]:
    """Rows of q, k and v. Moshi rotates pairs (2i, 2i + 1) of a head, we (i, i + h/2)."""
    pairs = np.arange(width).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return {"q": pairs, "k": width + pairs, "v": range(2 * width, 3 * width)}


def _fields(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        return PUBLISHED
    return grid_weights.fields(folder, "moshi")


def _sizes(folder: Path, fields: Mapping[str, Any]) -> MoshiSizes:
    for name, value in (NAMED | DEFAULTS).items():
        found = fields[name] if name in NAMED else fields.get(name, value)
        if (found or None) != (value or None):  # {} and False are none, too
            raise UserError(
                f"{folder}: {name} = {json.dumps(found)} is not supported",
                "use moshiko or moshika",
            )
    width, depth_width = fields["dim"], fields["depformer_dim"]
    heads, depth_heads = fields["num_heads"], fields["depformer_num_heads"]
    scale = fields["hidden_scale"]
    backbone = BackboneConfig(
        vocab_size=fields["text_card"] + 1,
        width=width,
        layers=fields["num_layers"],
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        mlp_width=_gated(width, int(scale * width)),
        rope_theta=float(fields["max_period"]),
        norm_eps=1e-8,
        window=fields["context"],
    )
    forward = fields.get("depformer_dim_feedforward") or int(scale * depth_width)
    depth = DepthConfig(
        width=depth_width,
        layers=fields["depformer_num_layers"],
        heads=depth_heads,
        kv_heads=depth_heads,
        head_dim=depth_width // depth_heads,
        mlp_width=_gated(depth_width, forward),
        norm_eps=1e-8,
        condition="previous",
        per_step=True,
        final_norm=False,
    )
    delays = tuple(fields["delays"])
    return MoshiSizes(backbone, depth, fields["n_q"], fields["dep_q"], delays)


def _gated(width: int, forward: int) -> int:
    """Inner width of a gated MLP that has the size of a plain one (`ActivationGating`)."""
    return 21 * width // 8 if forward == 4 * width else 2 * forward // 3
