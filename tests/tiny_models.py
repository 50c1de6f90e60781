"""Models of a few thousand random weights in the published formats, for tests."""

import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

from slm_jax.nn.quantizers import RvqConfig
from slm_jax.tokenizers.taste import Taste, save_taste
from slm_jax.tokenizers.taste_decoder import TasteDecoderConfig
from slm_jax.tokenizers.taste_network import TasteConfig, TasteNetwork
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
