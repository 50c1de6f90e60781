"""Names and sizes of published neural codecs: one `Format` each.

Sources: MimiModel, EncodecModel and DacModel of transformers, and `snac` (hubertsiuzdak/snac).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slm_jax.interop.codecs import Format, Source

Table = dict[str, Source]
_UNIT = ("snake1", "conv1", "snake2", "conv2")  # layers of a residual unit of DAC and SNAC


def _only(fields: Mapping[str, Any], **wanted: Any) -> None:
    """Refuses values, of fields that are there, which the networks here do not have."""
    for name, value in wanted.items():
        if fields.get(name, value) != value:
            raise ValueError(f"{name} {fields[name]} is not supported, only {value}")


def _module(ours: str, theirs: str, kind: str, bias: bool = True) -> Table:
    """A convolution or a linear layer."""
    table = {f"{ours}/kernel": Source(f"{theirs}.weight", kind)}
    return table | ({f"{ours}/bias": Source(f"{theirs}.bias", "vector")} if bias else {})


def _seanet_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "channels": fields["audio_channels"],
        "width": fields["hidden_size"],
        "filters": fields["num_filters"],
        "residual_layers": fields["num_residual_layers"],
        "ratios": tuple(fields["upsampling_ratios"]),
        "kernel": fields["kernel_size"],
        "last_kernel": fields["last_kernel_size"],
        "residual_kernel": fields["residual_kernel_size"],
        "dilation_growth": fields["dilation_growth_rate"],
        "compress": fields["compress"],
        "shortcut": fields["use_conv_shortcut"],
        "pad_mode": fields["pad_mode"],
        "causal": fields["use_causal_conv"],
        "norm": fields.get("norm_type") == "time_group_norm",
    }


def _seanet(sizes: Mapping[str, Any], lstm_layers: int = 0) -> Table:
    """Both halves; foreign layers are numbered in order, activations included."""
    blocks, stages = sizes["residual_layers"], len(sizes["ratios"])
    table: Table = {}

    def conv(ours: str, theirs: str, kind: str = "conv") -> Table:
        if not sizes["norm"]:
            return _module(ours, f"{theirs}.conv", kind)
        scale = {f"{ours}/norm/scale": Source(f"{theirs}.norm.weight", "vector")}
        bias = {f"{ours}/norm/bias": Source(f"{theirs}.norm.bias", "vector")}
        return _module(f"{ours}/conv", f"{theirs}.conv", kind) | scale | bias

    def lstm(side: str, at: int) -> Table:
        names = {"ih": "weight_ih", "hh": "weight_hh", "bias_ih": "bias_ih", "bias_hh": "bias_hh"}
        return {
            f"{side}/lstm/layers/{i}/{ours}": Source(
                f"{side}.layers.{at}.lstm.{theirs}_l{i}", "vector" if "bias" in ours else "linear"
            )
            for i in range(lstm_layers)
            for ours, theirs in names.items()
        }

    def block(ours: str, theirs: str) -> Table:
        made = conv(f"{ours}/first", f"{theirs}.block.1")
        made |= conv(f"{ours}/second", f"{theirs}.block.3")
        if sizes["shortcut"]:
            made |= conv(f"{ours}/shortcut", f"{theirs}.shortcut")
        return made

    at = 0
    table |= conv("encoder/first", f"encoder.layers.{at}")
    for stage in range(stages):
        for j in range(blocks):
            at += 1
            table |= block(f"encoder/stages/{stage}/blocks/{j}", f"encoder.layers.{at}")
        at += 2  # an activation first
        table |= conv(f"encoder/stages/{stage}/down", f"encoder.layers.{at}")
    if lstm_layers:
        at += 1
        table |= lstm("encoder", at)
    table |= conv("encoder/last", f"encoder.layers.{at + 2}")

    at = 0
    table |= conv("decoder/first", f"decoder.layers.{at}")
    if lstm_layers:
        at += 1
        table |= lstm("decoder", at)
    for stage in range(stages):
        at += 2
        table |= conv(f"decoder/stages/{stage}/up", f"decoder.layers.{at}", "transposed")
        for j in range(blocks):
            at += 1
            table |= block(f"decoder/stages/{stage}/blocks/{j}", f"decoder.layers.{at}")
    return table | conv("decoder/last", f"decoder.layers.{at + 2}")


def _mimi_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    _only(
        fields,
        use_causal_conv=True,
        trim_right_ratio=1.0,
        hidden_act="gelu",
        attention_bias=False,
        audio_channels=1,
        upsample_groups=fields["hidden_size"],
    )
    rope = fields.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type {rope['rope_type']} is not supported, only default")
    seanet = _seanet_sizes(fields)
    rate, hop = fields["sampling_rate"], math.prod(seanet["ratios"])
    heads = fields["num_attention_heads"]
    # MimiConfig: two latents make a frame unless the file says otherwise (transformers 5: `_`).
    frame_rate = fields.get("frame_rate") or fields.get("_frame_rate") or rate / (2 * hop)
    stride = int(-(-rate // hop) / frame_rate)
    if stride < 2:
        raise ValueError(f"frame_rate {frame_rate} is not below that of the convolutions")
    return {
        "sample_rate": rate,
        "seanet": seanet,
        "stride": stride,
        "layers": fields["num_hidden_layers"],
        "heads": heads,
        "kv_heads": fields["num_key_value_heads"],
        "head_dim": fields.get("head_dim") or fields["hidden_size"] // heads,
        "mlp_width": fields["intermediate_size"],
        "window": fields["sliding_window"],
        "rope_theta": float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0))),
        "norm_epsilon": fields["norm_eps"],
        "levels": fields["num_quantizers"],
        "semantic_levels": fields["num_semantic_quantizers"],
        "codes": fields["codebook_size"],
        "code_width": fields.get("codebook_dim") or fields["hidden_size"],
    }


def _mimi_table(sizes: Mapping[str, Any]) -> Table:
    table = _seanet(sizes["seanet"])
    layer = {
        "norm/scale": ("input_layernorm.weight", "vector"),
        "norm/bias": ("input_layernorm.bias", "vector"),
        "q/kernel": ("self_attn.q_proj.weight", "linear"),
        "k/kernel": ("self_attn.k_proj.weight", "linear"),
        "v/kernel": ("self_attn.v_proj.weight", "linear"),
        "o/kernel": ("self_attn.o_proj.weight", "linear"),
        "scale": ("self_attn_layer_scale.scale", "vector"),
        "mlp_norm/scale": ("post_attention_layernorm.weight", "vector"),
        "mlp_norm/bias": ("post_attention_layernorm.bias", "vector"),
        "up/kernel": ("mlp.fc1.weight", "linear"),
        "down/kernel": ("mlp.fc2.weight", "linear"),
        "mlp_scale": ("mlp_layer_scale.scale", "vector"),
    }
    for side in ("encoder", "decoder"):
        for i in range(sizes["layers"]):
            for ours, (theirs, kind) in layer.items():
                name = f"{side}_transformer.layers.{i}.{theirs}"
                table[f"{side}_transformer/layers/{i}/{ours}"] = Source(name, kind)
    semantic = sizes["semantic_levels"]
    for part, levels in (("semantic", semantic), ("acoustic", sizes["levels"] - semantic)):
        theirs = f"quantizer.{part}_residual_vector_quantizer"
        table[f"quantizer/{part}/codebooks"] = Source(
            f"{theirs}.layers.{{i}}.codebook.embed", "table", levels
        )
        if sizes["code_width"] != sizes["seanet"]["width"]:
            table |= _module(f"quantizer/{part}/down", f"{theirs}.input_proj", "linear", bias=False)
            table |= _module(f"quantizer/{part}/up", f"{theirs}.output_proj", "linear", bias=False)
    table |= _module("downsample", "downsample.conv", "conv", bias=False)
    return table | _module("upsample", "upsample.conv", "depthwise", bias=False)


MIMI = Format("Mimi", "mimi", _mimi_sizes, _mimi_table, r"quantizer\..*\.codebook\.initialized")


def _encodec_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    seanet = _seanet_sizes(fields)
    rate, codes = fields["sampling_rate"], fields["codebook_size"]
    frame_rate = math.ceil(rate / math.prod(seanet["ratios"]))
    bits = math.ceil(math.log2(codes))
    return {
        "sample_rate": rate,
        "seanet": seanet,
        "lstm_layers": fields["num_lstm_layers"],
        "levels": int(1000 * fields["target_bandwidths"][-1] // (frame_rate * bits)),
        "codes": codes,
    }


def _encodec_causal(fields: Mapping[str, Any]) -> dict[str, Any]:
    _only(
        fields,
        use_causal_conv=True,
        trim_right_ratio=1.0,
        audio_channels=1,
        normalize=False,
        chunk_length_s=None,
        norm_type="weight_norm",
    )
    return _encodec_sizes(fields)


def _encodec_chunked(fields: Mapping[str, Any]) -> dict[str, Any]:
    _only(fields, use_causal_conv=False, normalize=True, norm_type="time_group_norm")
    chunk = int(fields["chunk_length_s"] * fields["sampling_rate"])
    stride = max(1, int((1.0 - fields["overlap"]) * chunk))
    return _encodec_sizes(fields) | {"chunk": chunk, "stride": stride}


def _encodec_table(sizes: Mapping[str, Any]) -> Table:
    books = Source("quantizer.layers.{i}.codebook.embed", "table", sizes["levels"])
    return _seanet(sizes["seanet"], sizes["lstm_layers"]) | {"quantizer/codebooks": books}


_ENCODEC_IGNORED = r"quantizer\..*\.codebook\.(inited|cluster_size|embed_avg)"
ENCODEC = Format("EnCodec", "encodec", _encodec_causal, _encodec_table, _ENCODEC_IGNORED)
ENCODEC_CHUNKED = Format(
    "chunked EnCodec", "encodec", _encodec_chunked, _encodec_table, _ENCODEC_IGNORED
)


def _snake(ours: str, theirs: str) -> Table:
    return {f"{ours}/alpha": Source(f"{theirs}.alpha", "vector")}


def _unit(ours: str, theirs: Mapping[str, str], depthwise: bool = False) -> Table:
    """A residual unit; `theirs` names the four layers of `_UNIT`."""
    table = _snake(f"{ours}/snake1", theirs["snake1"]) | _snake(f"{ours}/snake2", theirs["snake2"])
    kind = "depthwise" if depthwise else "conv"
    table |= _module(f"{ours}/conv1", theirs["conv1"], kind)
    return table | _module(f"{ours}/conv2", theirs["conv2"], "conv")


def _factorised(levels: int) -> Table:
    table: Table = {}
    for i in range(levels):
        ours, theirs = f"quantizer/levels/{i}", f"quantizer.quantizers.{i}"
        table |= _module(f"{ours}/down", f"{theirs}.in_proj", "linear")
        table |= _module(f"{ours}/up", f"{theirs}.out_proj", "linear")
        table[f"{ours}/codebook"] = Source(f"{theirs}.codebook.weight", "table")
    return table


def _dac_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    ratios = tuple(fields["downsampling_ratios"])
    width = fields["encoder_hidden_size"] * 2 ** len(ratios)
    _only(fields, hidden_size=width, upsampling_ratios=list(reversed(ratios)))
    return {
        "sample_rate": fields["sampling_rate"],
        "filters": fields["encoder_hidden_size"],
        "ratios": ratios,
        "decoder_width": fields["decoder_hidden_size"],
        "levels": fields["n_codebooks"],
        "codes": fields["codebook_size"],
        "code_width": fields["codebook_dim"],
    }


def _dac_table(sizes: Mapping[str, Any]) -> Table:
    table = _factorised(sizes["levels"])
    for side, turn, kind in (("encoder", "down", "conv"), ("decoder", "up", "transposed")):
        table |= _module(f"{side}/first", f"{side}.conv1", "conv")
        for i in range(len(sizes["ratios"])):
            ours, theirs = f"{side}/stages/{i}", f"{side}.block.{i}"
            for j in range(3):
                unit = {part: f"{theirs}.res_unit{j + 1}.{part}" for part in _UNIT}
                table |= _unit(f"{ours}/units/{j}", unit)
            table |= _snake(f"{ours}/snake", f"{theirs}.snake1")
            strided = "conv1" if side == "encoder" else "conv_t1"
            table |= _module(f"{ours}/{turn}", f"{theirs}.{strided}", kind)
        table |= _snake(f"{side}/snake", f"{side}.snake1")
        table |= _module(f"{side}/last", f"{side}.conv2", "conv")
    return table


DAC = Format("DAC", "dac", _dac_sizes, _dac_table, "")


def _snac_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    ratios = tuple(fields["encoder_rates"])
    width = fields["encoder_dim"] * 2 ** len(ratios)
    if fields.get("latent_dim") not in (None, width):
        raise ValueError(f"latent_dim {fields['latent_dim']} is not supported, only {width}")
    strides = tuple(fields["vq_strides"])
    if any(strides[0] % stride for stride in strides):
        raise ValueError(f"vq_strides {strides} do not divide the first of them")
    return {
        "sample_rate": fields["sampling_rate"],
        "filters": fields["encoder_dim"],
        "ratios": ratios,
        "decoder_width": fields["decoder_dim"],
        "decoder_ratios": tuple(fields["decoder_rates"]),
        "window": fields["attn_window_size"],
        "strides": strides,
        "codes": fields["codebook_size"],
        "code_width": fields["codebook_dim"],
        "noise": fields["noise"],
        "depthwise": fields["depthwise"],
    }


def _snac_table(sizes: Mapping[str, Any]) -> Table:
    depthwise, window = sizes["depthwise"], sizes["window"]
    wide = "depthwise" if depthwise else "conv"

    def units(ours: str, theirs: str, first: int) -> Table:
        table: Table = {}
        for j in range(3):
            unit = {part: f"{theirs}.{first + j}.block.{k}" for k, part in enumerate(_UNIT)}
            table |= _unit(f"{ours}/units/{j}", unit, depthwise)
        return table

    def attention(ours: str, theirs: str) -> Table:
        table = {f"{ours}/norm/scale": Source(f"{theirs}.norm.weight", "vector")}
        table |= {f"{ours}/norm/bias": Source(f"{theirs}.norm.bias", "vector")}
        table |= _module(f"{ours}/qkv", f"{theirs}.to_qkv", "linear", bias=False)
        return table | _module(f"{ours}/out", f"{theirs}.to_out", "linear", bias=False)

    table = _factorised(len(sizes["strides"]))
    table |= _module("encoder/first", "encoder.block.0", "conv")
    at = 0
    for i in range(len(sizes["ratios"])):
        at += 1
        ours, theirs = f"encoder/stages/{i}", f"encoder.block.{at}.block"
        table |= units(ours, theirs, 0) | _snake(f"{ours}/snake", f"{theirs}.3")
        table |= _module(f"{ours}/down", f"{theirs}.4", "conv")
    if window:
        at += 1
        table |= attention("encoder/attention", f"encoder.block.{at}")
    table |= _module("encoder/last", f"encoder.block.{at + 1}", wide)

    table |= _module("decoder/first", "decoder.model.0", wide)
    at = 0
    if depthwise:
        at += 1
        table |= _module("decoder/widen", f"decoder.model.{at}", "conv")
    if window:
        at += 1
        table |= attention("decoder/attention", f"decoder.model.{at}")
    for i in range(len(sizes["decoder_ratios"])):
        at += 1
        ours, theirs = f"decoder/stages/{i}", f"decoder.model.{at}.block"
        table |= _snake(f"{ours}/snake", f"{theirs}.0")
        table |= _module(f"{ours}/up", f"{theirs}.1", "transposed")
        if sizes["noise"]:
            table |= _module(f"{ours}/after/linear", f"{theirs}.2.linear", "linear", bias=False)
        table |= units(ours, theirs, 3 if sizes["noise"] else 2)
    table |= _snake("decoder/snake", f"decoder.model.{at + 1}")
    return table | _module("decoder/last", f"decoder.model.{at + 2}", "conv")


SNAC = Format("SNAC", "", _snac_sizes, _snac_table, r".*\.rel_pos\.(inv_freq|scale)")
