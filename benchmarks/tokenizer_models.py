"""Tokenizers of published sizes with random weights, ours beside PyTorch's with the same ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from flax import nnx
from safetensors.torch import save_file

from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.codecs.dac import Dac
from slm_jax.tokenizers.codecs.encodec import Encodec
from slm_jax.tokenizers.codecs.encodec_chunked import EncodecChunked
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec, FrameCodecConfig, FrameCodecNetwork
from slm_jax.tokenizers.codecs.mimi import Mimi
from slm_jax.tokenizers.codecs.snac import Snac
from slm_jax.tokenizers.ssl_encoder import SslEncoder
from slm_jax.tokenizers.whisper import Whisper

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEVELS = 8  # of codecs that have more
Call = Callable[[], np.ndarray]


class Pair(NamedTuple):
    """The same thing done by ours and by theirs (None: there is no theirs)."""

    what: str
    seconds: float
    ours: Call
    theirs: Call | None


class Job(NamedTuple):
    """What every model gets: a folder for its weights, and rows of so many seconds."""

    folder: Path
    seconds: float
    rows: int

    def audio(self, rate: int) -> np.ndarray:
        """float32 [rows, n]."""
        size = (self.rows, round(self.seconds * rate))
        return (np.random.default_rng(0).normal(size=size) * 0.1).astype(np.float32)


def mimi(job: Job) -> tuple[list[Pair], Any]:
    model = transformers.MimiModel(transformers.MimiConfig()).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
    codec = Mimi.load(saved(model, job.folder), LEVELS)
    pairs = codec_pairs(
        f"Mimi, {LEVELS} levels",
        codec,
        job,
        lambda audio: model.encode(audio, num_quantizers=LEVELS).audio_codes,
        lambda codes: model.decode(codes).audio_values,
    )
    return pairs, codec


def encodec(job: Job) -> tuple[list[Pair], Any]:
    model = with_codebooks(transformers.EncodecModel(transformers.EncodecConfig()))
    codec = Encodec.load(saved(model, job.folder), LEVELS)
    pairs = codec_pairs(
        f"EnCodec 24 kHz, {LEVELS} levels",
        codec,
        job,
        lambda audio: model.encode(audio, bandwidth=6.0).audio_codes,
        lambda codes: model.decode(codes, [None]).audio_values,
        lambda codes: codes[0],
    )
    return pairs, codec


def encodec_48(job: Job) -> tuple[list[Pair], Any]:
    config = transformers.EncodecConfig(
        target_bandwidths=[3.0, 6.0, 12.0, 24.0],
        sampling_rate=48_000,
        audio_channels=2,
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.01,
        use_causal_conv=False,
        norm_type="time_group_norm",
    )
    model = with_codebooks(transformers.EncodecModel(config))
    codec = EncodecChunked.load(saved(model, job.folder), LEVELS)
    stride, chunk = config.chunk_stride, config.chunk_length

    def encode(audio: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As EncodecFeatureExtractor pads, but for the overlap at the end, also encoded there."""
        count = -(-audio.shape[2] // stride)
        length = (count - 1) * stride + chunk
        whole = torch.nn.functional.pad(audio, (0, length - audio.shape[2]))
        out = model.encode(whole.expand(-1, 2, -1), bandwidth=12.0)
        return out.audio_codes[:count], out.audio_scales[:count]

    pairs = codec_pairs(
        f"EnCodec 48 kHz, {LEVELS} levels",
        codec,
        job,
        encode,
        lambda written: model.decode(*written).audio_values.mean(1, keepdim=True),
        lambda written: torch.cat(list(written[0]), dim=-1),
        lambda audio, lengths: (codec.scales(audio, lengths),),
    )
    return pairs, codec


def dac(job: Job) -> tuple[list[Pair], Any]:
    model = transformers.DacModel(transformers.DacConfig(sampling_rate=44_100)).eval()
    codec = Dac.load(saved(model, job.folder))
    pairs = codec_pairs(
        "DAC 44.1 kHz",
        codec,
        job,
        lambda audio: model.encode(padded(audio, 512)).audio_codes,
        lambda codes: model.decode(audio_codes=codes).audio_values[:, None],
    )
    return pairs, codec


def snac(job: Job) -> tuple[list[Pair], Any]:
    from snac import SNAC

    config = {
        "sampling_rate": 24_000,
        "encoder_dim": 48,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 1024,
        "decoder_rates": [8, 8, 4, 2],
        "attn_window_size": None,
        "codebook_size": 4096,
        "codebook_dim": 8,
        "vq_strides": [4, 2, 1],
        "noise": True,
        "depthwise": True,
    }
    model = SNAC(**config).eval()
    save_file(model.state_dict(), job.folder / "model.safetensors")
    (job.folder / "config.json").write_text(json.dumps(config))
    model.to(DEVICE)
    codec = Snac.load(job.folder)

    def together(levels: list[torch.Tensor]) -> torch.Tensor:
        frames = levels[0].shape[1]
        return torch.cat([x.reshape(len(x), frames, -1) for x in levels], dim=-1).mT

    return codec_pairs("SNAC 24 kHz", codec, job, model.encode, model.decode, together), codec


def frame_codec(job: Job) -> tuple[list[Pair], Any]:
    network = FrameCodecNetwork(FrameCodecConfig(), rngs=nnx.Rngs(0))
    network.codebooks[...] = jax.random.normal(jax.random.key(0), network.codebooks.shape)
    codec = FrameCodec(network, network.config.rvq.levels)
    audio = job.audio(codec.sample_rate)
    lengths = np.full(len(audio), audio.shape[1])
    codes, frames = codec.encode(audio, lengths)
    seconds = audio.size / codec.sample_rate
    encode = Pair("ours, encode", seconds, lambda: host(codec.encode(audio, lengths)[0]), None)
    decode = Pair("ours, decode", seconds, lambda: host(codec.decode(codes, frames)), None)
    return [encode, decode], codec


def whisper(job: Job) -> tuple[list[Pair], Any]:
    """Tiny's encoder over 30 s, which it always gets, from log-mels on."""
    sizes = dict(d_model=384, encoder_layers=4, decoder_layers=4, encoder_ffn_dim=1536)
    heads = dict(encoder_attention_heads=6, decoder_attention_heads=6, decoder_ffn_dim=1536)
    config = transformers.WhisperConfig(**sizes, **heads)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    graphdef, params = pure_params(Whisper.load(saved(model, job.folder)).encoder)
    encode = jax.jit(lambda params, mel: merge(graphdef, params)(mel)[0])
    mel = np.random.default_rng(0).normal(size=(job.rows, 80, 3000)).astype(np.float32)
    pair = Pair(
        "Whisper tiny encoder",
        30.0 * job.rows,
        lambda: host(encode(params, mel)),
        lambda: array(model.model.encoder(tensor(mel)).last_hidden_state),
    )
    return [pair], None


def hubert(job: Job) -> tuple[list[Pair], Any]:
    """Base, its last layer."""
    model = transformers.HubertModel(transformers.HubertConfig()).eval()
    settings = {"do_normalize": False, "sampling_rate": 16_000}
    (job.folder / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = SslEncoder.load(saved(model, job.folder))
    graphdef, params = pure_params(encoder)
    layers, audio = encoder.config.layers, job.audio(16_000)
    lengths = np.full(len(audio), audio.shape[1])
    encode = jax.jit(lambda params, *args: merge(graphdef, params).features(*args, layers))
    pair = Pair(
        "HuBERT base encoder",
        audio.size / 16_000,
        lambda: host(encode(params, audio, lengths)),
        lambda: array(model(tensor(audio)).last_hidden_state),
    )
    return [pair], None


MODELS = {
    "mimi": mimi,
    "encodec": encodec,
    "encodec-48": encodec_48,
    "dac": dac,
    "snac": snac,
    "codec": frame_codec,
    "whisper": whisper,
    "hubert": hubert,
}


def codec_pairs(
    name: str,
    codec: Any,
    job: Job,
    encode: Callable[[torch.Tensor], Any],
    decode: Callable[[Any], torch.Tensor],
    codes_of: Callable[[Any], torch.Tensor] = lambda written: written,
    beside: Callable[..., tuple[Any, ...]] = lambda audio, lengths: (),
) -> list[Pair]:
    """Encoding, and decoding of what each has encoded.

    Args:
      name, codec, job: ours, and what it gets.
      encode: theirs, audio [B, 1, n] -> what `decode` takes.
      decode: theirs -> audio [B, 1, n].
      codes_of: what `encode` gives -> codes [B, K, T].
      beside: what our decoder takes besides codes and frames.
    """
    audio = job.audio(codec.sample_rate)
    lengths = np.full(len(audio), audio.shape[1])
    given = [np.asarray(x) for x in (*codec.encode(audio, lengths), *beside(audio, lengths))]
    written = encode(tensor(audio[:, None]))
    seconds = audio.size / codec.sample_rate
    return [
        Pair(
            f"{name}, encode",
            seconds,
            lambda: host(codec.encode(audio, lengths)[0]),
            lambda: array(codes_of(encode(tensor(audio[:, None])))).swapaxes(1, 2),
        ),
        Pair(
            f"{name}, decode",
            seconds,
            lambda: host(codec.decode(*given)),
            lambda: array(decode(written))[:, 0],
        ),
    ]


def with_codebooks(model: transformers.EncodecModel) -> transformers.EncodecModel:
    """Codebooks at the place and scale of what they quantise; they are zeros at first."""
    model.eval()
    latents = model.encoder(torch.randn(1, model.config.audio_channels, 24_000))[0]
    mean, spread = latents.mean(1), latents.std(1)
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn_like(layer.codebook.embed) * spread + mean)
        mean = 0
    return model


def padded(audio: torch.Tensor, frame: int) -> torch.Tensor:
    return torch.nn.functional.pad(audio, (0, -audio.shape[-1] % frame))


def saved(model: Any, folder: Path) -> Path:
    """Its weights for ours to read; the model is then on the device."""
    model.save_pretrained(folder)
    model.to(DEVICE)
    return folder


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).to(DEVICE)


def array(x: torch.Tensor) -> np.ndarray:
    return x.cpu().numpy()


def host(x: jax.Array) -> np.ndarray:
    return np.asarray(x)
