"""Whisper's text tokenizer: byte-level BPE with special ids, from its `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from slm_jax.errors import UserError


class WhisperText:
    """Text to ids of a Whisper checkpoint and back.

    Attributes:
      end: id of <|endoftext|>; all larger ids are special or timestamps.
      multilingual: whether the checkpoint wants a language and a task in its prompt.
    """

    def __init__(self, folder: Path | str, vocab_size: int):
        """Reads `folder/tokenizer.json` for a model of `vocab_size` ids.

        Raises:
          UserError: the file is missing or not a Whisper tokenizer.
        """
        path = Path(folder) / "tokenizer.json"
        remedy = "copy tokenizer.json of the same Whisper model into the folder"
        if not path.exists():
            raise UserError(f"{path} is missing", remedy)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is not readable: {error}", remedy) from error
        self._tokenizer.encode_special_tokens = True  # "<|en|>" in a transcript is plain text
        self._path = path
        self.end = self._special("<|endoftext|>")
        self.multilingual = vocab_size >= 51865  # openai/whisper, Whisper.is_multilingual

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special ones; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode([i for i in ids if i < self.end])

    def byte_lengths(self, ids: Sequence[int]) -> list[int]:
        """UTF-8 bytes of each text id (byte-level BPE writes one character a byte)."""
        return [len(self._tokenizer.id_to_token(i)) for i in ids]

    def prompt(self, language: str) -> tuple[int, ...]:
        """Ids that ask for a transcript in `language` without timestamps.

        Raises:
          UserError: the checkpoint does not know the language.
        """
        start, plain = self._special("<|startoftranscript|>"), self._special("<|notimestamps|>")
        if not self.multilingual:
            if language.split("-")[0] != "en":
                raise UserError(
                    f"this Whisper hears English only, not {language!r}",
                    "use a multilingual Whisper checkpoint",
                )
            return start, plain
        language_id = self._special(f"<|{language.split('-')[0]}|>")
        return start, language_id, self._special("<|transcribe|>"), plain

    def _special(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise UserError(
                f"{self._path} has no token {token}", "use a Whisper model and a language it knows"
            )
        return found
