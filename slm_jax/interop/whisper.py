"""Whisper checkpoints in: CTranslate2 folders, and safetensors in Hugging Face or OpenAI names.

Each format is one table, our module -> foreign module. `{i}` counts layers, which are stacked; a
trailing `[p/n]` takes the p-th of n equal parts of a fused projection.

Sources: CTranslate2's WhisperSpec (revision 3), transformers' WhisperForConditionalGeneration,
openai/whisper's model.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from slm_jax.errors import UserError
from slm_jax.interop import ctranslate2

_REMEDY = "point to a CTranslate2 folder or a folder with the safetensors of a Whisper model"
_HEAD_DIM = 64  # of every published Whisper; used where a format does not state its heads
_LINEARS = ("q", "k", "v", "o", "up", "down", "conv1", "conv2")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Whisper checkpoint in our names.

    Attributes:
      sizes: keyword arguments of `WhisperConfig`.
      weights: flat name -> float32 array; kernels [in, out], layers stacked on the first axis.
      alignment_heads: (decoder layer, head) pairs whose cross-attention follows the audio.
      suppress_ids: ids that greedy decoding never writes.
      suppress_ids_begin: ids that it does not write first (blank and end of text).
    """

    sizes: dict[str, int]
    weights: dict[str, np.ndarray]
    alignment_heads: tuple[tuple[int, int], ...]
    suppress_ids: tuple[int, ...]
    suppress_ids_begin: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Format:
    """Names of one checkpoint format.

    Attributes:
      tensors: our weight -> foreign tensor.
      modules: our module -> foreign module, for linear layers, convolutions and norms.
      layer: our module of a layer -> foreign module in that layer, both sides alike.
      cross: the same, for the decoder alone.
      layers: pattern of a foreign layer's name.
      linear: foreign words for kernel and bias.
      norm: foreign words for scale and bias.
      ignored: pattern of foreign tensors that hold nothing to load.
    """

    tensors: Mapping[str, str]
    modules: Mapping[str, str]
    layer: Mapping[str, str]
    cross: Mapping[str, str]
    layers: str
    linear: tuple[str, str]
    norm: tuple[str, str]
    ignored: str

    def table(self) -> dict[str, str]:
        """Our weight -> foreign tensor, `{i}` for the layer and `[p/n]` for a part."""
        modules = dict(self.modules)
        for side, names in (("encoder", self.layer), ("decoder", {**self.layer, **self.cross})):
            for ours, theirs in names.items():
                modules[f"{side}/layers/{ours}"] = self.layers.format(side=side) + theirs
        table = dict(self.tensors)
        for ours, theirs in modules.items():
            linear = ours.rsplit("/", 1)[-1] in _LINEARS
            module, _, part = theirs.partition("[")
            part = part and "[" + part
            words = zip(
                ("kernel" if linear else "scale", "bias"),
                self.linear if linear else self.norm,
                strict=True,
            )
            table |= {f"{ours}/{word}": f"{module}{foreign}{part}" for word, foreign in words}
        # Whisper's key projections have no bias; fused formats store zeros in its place.
        return {ours: theirs for ours, theirs in table.items() if not ours.endswith("/k/bias")}


_CTRANSLATE2 = _Format(
    tensors={
        "decoder/embedding/embedding": "decoder/embeddings/weight",
        "decoder/positions": "decoder/position_encodings/encodings",
    },
    modules={
        "encoder/conv1": "encoder/conv1",
        "encoder/conv2": "encoder/conv2",
        "encoder/norm": "encoder/layer_norm",
        "decoder/norm": "decoder/layer_norm",
    },
    layer={
        "self_norm": "/self_attention/layer_norm",
        "self_attention/q": "/self_attention/linear_0[0/3]",
        "self_attention/k": "/self_attention/linear_0[1/3]",
        "self_attention/v": "/self_attention/linear_0[2/3]",
        "self_attention/o": "/self_attention/linear_1",
        "mlp_norm": "/ffn/layer_norm",
        "up": "/ffn/linear_0",
        "down": "/ffn/linear_1",
    },
    cross={
        "cross_norm": "/attention/layer_norm",
        "cross_attention/q": "/attention/linear_0",
        "cross_attention/k": "/attention/linear_1[0/2]",
        "cross_attention/v": "/attention/linear_1[1/2]",
        "cross_attention/o": "/attention/linear_2",
    },
    layers="{side}/layer_{{i}}",
    linear=("/weight", "/bias"),
    norm=("/gamma", "/beta"),
    ignored=r"encoder/position_encodings/encodings|decoder/projection/weight|"
    r"decoder/(activation|alibi|alignment_heads|alignment_layer|pre_norm|scale_embeddings)|"
    r"decoder/start_from_zero_embedding|(en|de)coder/num_heads",
)
_HUGGING_FACE = _Format(
    tensors={
        "decoder/embedding/embedding": "decoder.embed_tokens.weight",
        "decoder/positions": "decoder.embed_positions.weight",
    },
    modules={
        "encoder/conv1": "encoder.conv1",
        "encoder/conv2": "encoder.conv2",
        "encoder/norm": "encoder.layer_norm",
        "decoder/norm": "decoder.layer_norm",
    },
    layer={
        "self_norm": ".self_attn_layer_norm",
        "self_attention/q": ".self_attn.q_proj",
        "self_attention/k": ".self_attn.k_proj",
        "self_attention/v": ".self_attn.v_proj",
        "self_attention/o": ".self_attn.out_proj",
        "mlp_norm": ".final_layer_norm",
        "up": ".fc1",
        "down": ".fc2",
    },
    cross={
        "cross_norm": ".encoder_attn_layer_norm",
        "cross_attention/q": ".encoder_attn.q_proj",
        "cross_attention/k": ".encoder_attn.k_proj",
        "cross_attention/v": ".encoder_attn.v_proj",
        "cross_attention/o": ".encoder_attn.out_proj",
    },
    layers="{side}.layers.{{i}}",
    linear=(".weight", ".bias"),
    norm=(".weight", ".bias"),
    ignored=r"encoder\.embed_positions\.weight|proj_out\.weight",
)
_OPENAI = _Format(
    tensors={
        "decoder/embedding/embedding": "decoder.token_embedding.weight",
        "decoder/positions": "decoder.positional_embedding",
    },
    modules={
        "encoder/conv1": "encoder.conv1",
        "encoder/conv2": "encoder.conv2",
        "encoder/norm": "encoder.ln_post",
        "decoder/norm": "decoder.ln",
    },
    layer={
        "self_norm": ".attn_ln",
        "self_attention/q": ".attn.query",
        "self_attention/k": ".attn.key",
        "self_attention/v": ".attn.value",
        "self_attention/o": ".attn.out",
        "mlp_norm": ".mlp_ln",
        "up": ".mlp.0",
        "down": ".mlp.2",
    },
    cross={
        "cross_norm": ".cross_attn_ln",
        "cross_attention/q": ".cross_attn.query",
        "cross_attention/k": ".cross_attn.key",
        "cross_attention/v": ".cross_attn.value",
        "cross_attention/o": ".cross_attn.out",
    },
    layers="{side}.blocks.{{i}}",
    linear=(".weight", ".bias"),
    norm=(".weight", ".bias"),
    ignored=r"encoder\.positional_embedding|decoder\.mask|alignment_heads",
)


def read(folder: Path | str) -> Checkpoint:
    """Reads a Whisper checkpoint of any size.

    Args:
      folder: a CTranslate2 folder (`model.bin`, `config.json`), or one with one or several
        `*.safetensors` in Hugging Face names (with `config.json`) or OpenAI's.

    Raises:
      UserError: no such files, unreadable ones, or ones that hold another model; every missing
        and unexpected tensor is named.
    """
    folder = Path(folder)
    config = _json(folder / "config.json") | _json(folder / "generation_config.json")
    if (folder / "model.bin").exists():
        model = ctranslate2.read(folder / "model.bin")
        if model.spec != "WhisperSpec":
            raise UserError(f"{folder} holds a {model.spec}, not a Whisper model", _REMEDY)
        tensors, form = model.weights, _CTRANSLATE2
        heads = {side: int(tensors[f"{side}/num_heads"]) for side in ("encoder", "decoder")}
    else:
        tensors = _safetensors(folder)
        form = _OPENAI if "decoder.token_embedding.weight" in tensors else _HUGGING_FACE
        heads = {
            side: config[f"{side}_attention_heads"]
            for side in ("encoder", "decoder")
            if f"{side}_attention_heads" in config
        }
    weights = _load(folder, tensors, form)
    sizes = _sizes(weights, heads)
    return Checkpoint(
        sizes=sizes,
        weights=weights,
        alignment_heads=_alignment_heads(config, sizes),
        suppress_ids=_ids(config, "suppress_ids", "suppress_tokens"),
        suppress_ids_begin=_ids(config, "suppress_ids_begin", "begin_suppress_tokens"),
    )


def _load(folder: Path, tensors: Mapping[str, np.ndarray], form: _Format) -> dict[str, np.ndarray]:
    weights, used, missing = {}, set(), []
    for ours, theirs in form.table().items():
        name, _, part = theirs.partition("[")
        layers = _layer_names(name, tensors)
        used.update(layers)
        missing += [layer for layer in layers if layer not in tensors]
        if missing:
            continue
        arrays = [_weight(tensors[layer], ours, part) for layer in layers]
        weights[ours] = np.stack(arrays) if "{i}" in name else arrays[0]
    unexpected = [
        name for name in tensors if name not in used and not re.fullmatch(form.ignored, name)
    ]
    if missing or unexpected:
        raise UserError(
            f"{folder} is not a Whisper checkpoint: missing {missing}, unexpected {unexpected}",
            _REMEDY,
        )
    return weights


def _layer_names(name: str, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The tensors of all layers; `name` itself if it has no `{i}`; never empty."""
    if "{i}" not in name:
        return [name]
    prefix = name.split("{i}")[0]
    found = {
        int(match[1])
        for match in (re.match(re.escape(prefix) + r"(\d+)\b", tensor) for tensor in tensors)
        if match
    }
    return [name.replace("{i}", str(i)) for i in range(max(found, default=0) + 1)]


def _weight(tensor: np.ndarray, ours: str, part: str) -> np.ndarray:
    if part:
        index, parts = map(int, part.rstrip("]").split("/"))
        tensor = np.split(tensor, parts)[index]
    tensor = np.asarray(tensor, np.float32)
    # [out, in] -> [in, out], and [out, in, kernel] -> [kernel, in, out] for convolutions.
    return tensor.T if ours.endswith("/kernel") else tensor


def _sizes(weights: Mapping[str, np.ndarray], heads: Mapping[str, int]) -> dict[str, int]:
    vocab_size, width = weights["decoder/embedding/embedding"].shape
    mlp = weights["encoder/layers/up/kernel"]
    return {
        "vocab_size": vocab_size,
        "width": width,
        "n_mels": weights["encoder/conv1/kernel"].shape[1],
        "mlp_width": mlp.shape[2],
        "encoder_layers": mlp.shape[0],
        "encoder_heads": heads.get("encoder", width // _HEAD_DIM),
        "decoder_layers": weights["decoder/layers/up/kernel"].shape[0],
        "decoder_heads": heads.get("decoder", width // _HEAD_DIM),
        "text_context": weights["decoder/positions"].shape[0],
    }


def _alignment_heads(
    config: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[tuple[int, int], ...]:
    """Those of the checkpoint, else OpenAI's default: all heads of the decoder's upper half."""
    if config.get("alignment_heads"):
        return tuple((layer, head) for layer, head in config["alignment_heads"])
    layers, heads = sizes["decoder_layers"], sizes["decoder_heads"]
    return tuple((i, h) for i in range(layers // 2, layers) for h in range(heads))


def _ids(config: Mapping[str, Any], *names: str) -> tuple[int, ...]:
    return next((tuple(config[name]) for name in names if config.get(name)), ())


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "fetch the model again") from error


def _safetensors(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds neither model.bin nor *.safetensors", _REMEDY)
    tensors = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118, it is no mapping
                    tensors[name.removeprefix("model.")] = file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path} is not readable: {error}", "fetch the model again") from error
    return tensors
