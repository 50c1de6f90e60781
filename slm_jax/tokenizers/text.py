"""The text LLM's own tokenizer, from its GGUF file or its tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from slm_jax.errors import UserError
from slm_jax.interop import gguf
from slm_jax.streams import fingerprint
from slm_jax.tokenizers.segmenters import segmenter_for

# How text is cut before byte pairs are merged, by `tokenizer.ggml.pre`. The first two use GPT-2's
# expression, the others those of the models' own tokenizer.json; {} is a run of digits.
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt-2": None,
    "smollm": None,  # and digits apart
    "llama-bpe": _CUT.replace("{}", r"\p{N}{1,3}"),
    "qwen2": _CUT.replace("{}", r"\p{N}"),
}
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
REMEDY = "give the .gguf file, or the folder with the tokenizer.json, of the text LLM"


class SpecialIds(NamedTuple):
    """Ids with a role; None where a model has none."""

    bos: int | None
    eos: int
    pad: int | None


class TextTokenizer:
    """Text to ids of a text LLM and back.

    Special tokens such as "<|im_end|>" in a text are plain characters: transcripts are data.

    Attributes:
      name: short name; the stream of its ids is called "text-" + name.
      pieces: the token of each id, in order; "Ġ" (byte-level BPE) or "▁" shows a space before it.
      special: ids that no text encodes to.
      bos_id, eos_id, pad_id: the model's own; the first and last fall back to eos.
      fingerprint: equal for tokenizers that give equal ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str, ids: SpecialIds):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.name = "".join(c if c.isalnum() or c in "._" else "-" for c in name.lower())
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.pieces = [""] * (max(vocabulary.values()) + 1)
        for piece, index in vocabulary.items():
            self.pieces[index] = piece
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(index for index, token in added.items() if token.special)
        self.eos_id = ids.eos
        self.bos_id = ids.eos if ids.bos is None else ids.bos
        self.pad_id = ids.eos if ids.pad is None else ids.pad
        definition = json.loads(tokenizer.to_str())
        parts = ("normalizer", "pre_tokenizer", "model", "added_tokens")
        self.fingerprint = fingerprint([definition[part] for part in parts])

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> TextTokenizer:
        """Reads a .gguf file, a tokenizer.json, or a folder that holds one.

        Args:
          path: one of those. Roles of ids come from the files beside a tokenizer.json.
          name: short name; default is the base name in the GGUF file, or the folder's name.

        Raises:
          UserError: nothing there, damaged, or of a kind that is not known here.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{path} does not exist", REMEDY)
        own_name, tokenizer, ids = (_from_gguf if path.suffix == ".gguf" else _from_json)(path)
        return cls(tokenizer, name or own_name, ids)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with nothing added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special ones left out; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        """The content of a tokenizer.json, which `transformers` loads."""
        return self._tokenizer.to_str(pretty=True)


def encode_words(
    tokenizer: TextTokenizer, words: Sequence[str], language: str
) -> tuple[list[int], list[int]]:
    """Ids of words, and the word of each id.

    Each word is encoded by itself, with what its language writes before it (a space, or nothing),
    so the ids of all words together spell the joined text.
    """
    segmenter = segmenter_for(language)
    ids: list[int] = []
    index: list[int] = []
    before = ""
    for number, word in enumerate(words):
        written = segmenter.join([before, word])[len(before) :] if before else word
        encoded = tokenizer.encode(written)
        ids += encoded
        index += [number] * len(encoded)
        before = word
    return ids, index


def _from_gguf(path: Path) -> tuple[str, tokenizers.Tokenizer, SpecialIds]:
    metadata = gguf.read(path).metadata
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "")
    if kind != "gpt2" or cut not in CUTS:
        raise UserError(
            f"{path} has a tokenizer of kind {kind} {cut}; known in GGUF is byte-level BPE "
            f"(gpt2) with {', '.join(CUTS)}",
            "give the tokenizer.json of the same model",
        )
    try:
        tokenizer = _byte_level_bpe(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.merges"],
            metadata["tokenizer.ggml.token_type"].tolist(),
            cut,
        )
        ids = SpecialIds(
            metadata.get("tokenizer.ggml.bos_token_id"),
            metadata["tokenizer.ggml.eos_token_id"],
            metadata.get("tokenizer.ggml.padding_token_id"),
        )
    except KeyError as error:
        raise UserError(f"{path} lacks {error}", "download it again") from None
    return metadata.get("general.basename", path.stem), tokenizer, ids


def _byte_level_bpe(
    pieces: list[str], merges: list[str], kinds: list[int], cut: str
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=cut == "llama-bpe",  # a word that is a token needs no merges
        )
    )
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if cut == "smollm":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if CUTS[cut] is not None:
        steps.append(pre_tokenizers.Split(Regex(CUTS[cut]), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=CUTS[cut] is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for special, wanted in ((True, CONTROL), (False, USER_DEFINED)):
        tokens = [
            AddedToken(piece, special=special, normalized=False)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind == wanted
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(tokens)
    return tokenizer


def _from_json(path: Path) -> tuple[str, tokenizers.Tokenizer, SpecialIds]:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{path} is no tokenizer: {error}", REMEDY) from None
    folder = path.resolve().parent
    bos, eos, pad = (_role(folder, tokenizer, role) for role in ("bos", "eos", "pad"))
    if eos is None:
        raise UserError(
            f"{folder} names no end-of-text token", "add eos_token to its tokenizer_config.json"
        )
    return folder.name, tokenizer, SpecialIds(bos, eos, pad)


def _role(folder: Path, tokenizer: tokenizers.Tokenizer, role: str) -> int | None:
    """From tokenizer_config.json by token, else from the model's configuration by id."""
    token: Any = _json(folder / "tokenizer_config.json").get(f"{role}_token")
    if isinstance(token, dict):
        token = token["content"]
    if token is not None:
        return tokenizer.token_to_id(token)
    for file in ("generation_config.json", "config.json"):
        ids = _json(folder / file).get(f"{role}_token_id")
        if ids is not None:
            return ids[0] if isinstance(ids, list) else ids
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "download it again") from None
