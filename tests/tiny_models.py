"""Models of a few thousand random weights in the published formats, for tests."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers

from slm_jax.nn.quantizers import FsqConfig, RvqConfig
from slm_jax.nn.tree import flatten, pure_params
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.asr_units import save_asr_units
from slm_jax.tokenizers.asr_units_network import (
    AsrUnitsConfig,
    AsrUnitsNetwork,
    identify,
    whisper_weights,
)
from slm_jax.tokenizers.taste import Taste, save_taste
from slm_jax.tokenizers.taste_decoder import TasteDecoderConfig
from slm_jax.tokenizers.taste_network import TasteConfig, TasteNetwork
from slm_jax.tokenizers.unit_encoder import UnitEncoder
from slm_jax.tokenizers.unit_tokenizer import save_units
from slm_jax.tokenizers.unit_vocoder import UnitNetwork, UnitVocoder, UnitVocoderConfig
from slm_jax.tokenizers.vocoder import VocoderConfig
from slm_jax.tokenizers.whisper import Whisper


def byte_tokenizer(path: Path, specials: list[str]) -> None:
    """A byte-level BPE with one id a byte; the special tokens follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(specials)
    made.save(str(path))


def tiny_whisper(folder: Path) -> Path:
    """An English-only Hugging Face Whisper of width 16."""
    specials = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    config = transformers.WhisperConfig(
        vocab_size=256 + len(specials),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=256,
        bos_token_id=256,
        eos_token_id=256,
        decoder_start_token_id=257,
        suppress_tokens=[],
        begin_suppress_tokens=[256],
    )
    torch.manual_seed(0)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    byte_tokenizer(folder / "tokenizer.json", specials)
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": [[1, 0]]}))
    return folder


def tiny_taste_config(**changes) -> TasteConfig:
    settings = {
        "value_layers": (1,),
        "aggregator_layers": (0,),
        "quantizer": "rvq",
        "rvq": RvqConfig(levels=2, codes=8, width=8),
        "speaker_width": 4,
        "decoder": TasteDecoderConfig(8, 8, 1, 1, 8, 8, 1),
        "vocoder": VocoderConfig(width=8, mlp=8, layers=1),
    }
    return TasteConfig(**settings | changes)


WORDS = {"one": ("W", "AH", "N"), "two": ("T", "UW")}  # all that a tiny tokenizer can pronounce


def tiny_taste(folder: Path, whisper: Path, **changes) -> Path:
    """A tokenizer with random weights and codebooks, its dictionary beside it."""
    config = tiny_taste_config(**changes)
    params = TasteNetwork(config, Whisper.load(whisper).config).init(0)
    if config.quantizer == "rvq":
        books = params["quantizer"]["codebooks"]
        params["quantizer"]["codebooks"] = np.random.default_rng(0).normal(size=books.shape)
    save_taste(folder, config, params, np.array([1.0, 0, 0, 0], np.float32), WORDS)
    lines = [f"{word} {' '.join(phones)}\n" for word, phones in WORDS.items()]
    (folder / "words.dict").write_text("".join(lines))
    return folder


def load_tiny_taste(folder: Path, whisper: Path, **changes) -> Taste:
    tiny_taste(folder, whisper, **changes)
    return Taste.load(whisper, folder, folder)


_NOISE = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1


def tiny_units(folder: Path, whisper: Path, audios: Sequence[np.ndarray] = (_NOISE,)) -> Path:
    """Twelve units of the first layer."""
    encoder = UnitEncoder.load(whisper, 1)
    features = np.concatenate([encoder.features(audio) for audio in audios])
    means = kmeans.fit(features, 12, 0, source=encoder.source)
    save_units(folder, means, str(whisper), 1)
    return folder


ASR_UNITS = AsrUnitsConfig(layer=1, pool=4, fsq=FsqConfig(levels=1, grid=(3, 3, 3)))


def start_asr_units(whisper: Path, config: AsrUnitsConfig = ASR_UNITS):
    """Config and what would be trained, at its start."""
    loaded = Whisper.load(whisper)
    config = dataclasses.replace(config, whisper=identify(loaded))
    fresh = flatten(pure_params(AsrUnitsNetwork(config, loaded.config, rngs=nnx.Rngs(0)))[1])
    given = whisper_weights(config, loaded)
    trained = {n: x for n, x in (fresh | given).items() if not n.startswith("decoder/")}
    kept = {n: x for n, x in trained.items() if n not in given or not n.startswith("below/")}
    return config, kept


def tiny_asr_units(folder: Path, whisper: Path) -> Path:
    """Supervised units at 12.5 Hz, untrained."""
    save_asr_units(folder, *start_asr_units(whisper))
    return folder


def tiny_unit_vocoder(kmeans: str, units: int) -> UnitVocoder:
    """A random one for units of this fingerprint."""
    config = UnitVocoderConfig(
        kmeans=kmeans,
        units=units,
        width=8,
        mlp=8,
        duration_layers=1,
        unit_layers=1,
        frame_layers=1,
        speaker_width=4,
        vocoder=VocoderConfig(width=8, mlp=8, layers=1),
    )
    return UnitVocoder(config, pure_params(UnitNetwork(config, rngs=nnx.Rngs(0)))[1])
