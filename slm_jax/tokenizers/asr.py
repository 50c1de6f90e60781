"""Speech recognition and forced alignment with Whisper: text, and words on the time axis."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.features import WHISPER_HOP, WHISPER_RATE, whisper_log_mel
from slm_jax.data.schema import Word
from slm_jax.errors import UserError
from slm_jax.nn.tree import flatten, merge, pure_params
from slm_jax.streams import fingerprint
from slm_jax.tokenizers import alignment
from slm_jax.tokenizers.segmenters import Segmenter, segmenter_for
from slm_jax.tokenizers.whisper import Whisper
from slm_jax.tokenizers.whisper_text import WhisperText

Context = Literal["full", "bucket"]
WINDOW = 30 * WHISPER_RATE  # samples that Whisper hears at a time
BUCKETS = (8 * WHISPER_RATE, 16 * WHISPER_RATE, WINDOW)
TAIL = WHISPER_RATE  # samples of silence that a bucket leaves after the audio
FRAME = 2 * WHISPER_HOP  # samples of an encoder frame, 20 ms
SEARCH = 10 * WHISPER_RATE  # the end of a full window in which a quiet place to cut is sought
MAX_NEW_IDS = 224  # half of the text context, as openai/whisper
TEXT_BUCKETS = (32, 64, 128, 256, 448)


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was said: the text, and its words with times and mean token probability."""

    text: str
    words: tuple[Word, ...]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """At most 30 s of one recording."""

    item: int
    start: int  # sample of the recording
    audio: np.ndarray
    words: list[str]  # to be aligned; empty when they are to be recognised

    @property
    def frames(self) -> int:
        return max(1, -(-len(self.audio) // FRAME))


@dataclasses.dataclass(frozen=True)
class _Part:
    """A piece and the placed words of its audio, in seconds of the piece."""

    piece: _Piece
    words: tuple[Word, ...]

    def shifted(self) -> Iterator[Word]:
        """The words in seconds of the recording."""
        offset = self.piece.start / WHISPER_RATE
        for word in self.words:
            yield dataclasses.replace(word, start=word.start + offset, end=word.end + offset)


class Asr:
    """A Whisper that transcribes and aligns batches of recordings.

    Args:
      folder: CTranslate2, Hugging Face or OpenAI-named checkpoint with its tokenizer.json.
      batch_size: windows of at most 30 s that go through the network together.

    Raises:
      UserError: the folder holds no whole Whisper.
    """

    def __init__(self, folder: Path | str, batch_size: int = 8):
        whisper = Whisper.load(folder)
        self.config = whisper.config
        self.batch_size = batch_size
        self._text = WhisperText(folder, self.config.vocab_size)
        self._graphdef, self._params = pure_params(whisper)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the weights and the alignment method: equal fingerprints give equal words."""
        weights = sorted(flatten(self._params).items())
        return fingerprint("whisper-words-2", *(np.asarray(w).tobytes() for _, w in weights))

    def transcribe(
        self,
        audios: Sequence[np.ndarray],
        language: str = "en",
        context: Context = "full",
        word_times: bool = True,
    ) -> list[Transcript]:
        """Writes down what is said, greedily, without timestamp tokens.

        A recording longer than 30 s is cut at quiet places, and each part heard by itself.

        Args:
          audios: float32 [n] each, 16 kHz mono, any length.
          language: what is spoken, ISO 639 code.
          context: "full" pads to 30 s, as Whisper was trained; "bucket" to the audio's own length
            with a second of silence, rounded up to 8, 16 or 30 s: much cheaper when short.
          word_times: False leaves `words` empty and saves the alignment.

        Raises:
          UserError: the checkpoint does not know the language.
        """
        segmenter = segmenter_for(language)
        prompt = self._text.prompt(language)
        pieces = [piece for i, audio in enumerate(audios) for piece in _pieces(i, audio)]
        parts: list[_Part] = []
        for batch, samples in _batches(pieces, self.batch_size, context):
            encoded = self._encode(batch, samples)
            texts = self._greedy(batch, encoded, prompt)
            batch = [
                dataclasses.replace(piece, words=segmenter.split(text))
                for piece, text in zip(batch, texts, strict=True)
            ]
            if word_times:
                parts += self._place(batch, encoded, prompt, segmenter)
            else:
                parts += [_Part(piece, ()) for piece in batch]
        return _join(parts, len(audios), segmenter)

    def align(
        self,
        audios: Sequence[np.ndarray],
        texts: Sequence[str],
        language: str = "en",
        context: Context = "bucket",
    ) -> list[Transcript]:
        """Puts the words of given transcripts on the time axis (forced alignment).

        A recording longer than 30 s is recognised first, to see which words fall in which part.

        Args:
          audios: float32 [n] each, 16 kHz mono, any length.
          texts: what is said in each; every word of it is placed. A low confidence tells that
            something else is said.
          language: of the text, ISO 639 code.
          context: as for `transcribe`.

        Raises:
          UserError: the checkpoint does not know the language, or a text is far too long for its
            audio (the message gives its index).
        """
        segmenter = segmenter_for(language)
        prompt = self._text.prompt(language)
        pieces = []
        for i, (audio, text) in enumerate(zip(audios, texts, strict=True)):
            windows, words = _pieces(i, audio), segmenter.split(text)
            if words and not windows:
                raise UserError(f"recording {i} is empty, its transcript is not", "leave it out")
            shares = [words] if windows else []
            if len(windows) > 1:
                heard = self.transcribe([w.audio for w in windows], language, "full", False)
                shares = _divide(words, [segmenter.split(h.text) for h in heard])
            pieces += [
                dataclasses.replace(window, words=share)
                for window, share in zip(windows, shares, strict=True)
            ]
        parts: list[_Part] = []
        for batch, samples in _batches(pieces, self.batch_size, context):
            parts += self._place(batch, self._encode(batch, samples), prompt, segmenter)
        return _join(parts, len(audios), segmenter)

    def _encode(self, batch: list[_Piece], samples: int) -> jax.Array:
        """[rows, samples // FRAME, D]; rows is a power of two, so that few programs compile."""
        rows = 1 << (len(batch) - 1).bit_length()
        audio = np.zeros((rows, samples), np.float32)
        for row, piece in enumerate(batch):
            audio[row, : len(piece.audio)] = piece.audio
        return _encode(self._graphdef, self._params, audio)

    def _greedy(
        self, batch: list[_Piece], encoded: jax.Array, prompt: tuple[int, ...]
    ) -> list[str]:
        idle = np.arange(len(encoded)) >= len(batch)
        ids = greedy(self._graphdef, self._params, encoded, idle, prompt, self._text.end)
        return [self._text.decode(row) for row in np.asarray(ids)[: len(batch)].tolist()]

    def _place(
        self,
        batch: list[_Piece],
        encoded: jax.Array,
        prompt: tuple[int, ...],
        segmenter: Segmenter,
    ) -> list[_Part]:
        """Aligns the words of each piece with its encoded audio."""
        texts = [
            self._text.encode(segmenter.separator + segmenter.join(piece.words))
            if piece.words
            else []
            for piece in batch
        ]
        needed = len(prompt) + max(map(len, texts)) + 1
        if needed > self.config.text_context:
            piece = batch[int(np.argmax([len(ids) for ids in texts]))]
            raise UserError(
                f"transcript {piece.item} has {needed} tokens for "
                f"{len(piece.audio) / WHISPER_RATE:.1f} s of audio, more than can be said in it",
                "check that the transcript belongs to this recording",
            )
        length = min(next(n for n in TEXT_BUCKETS if n >= needed), self.config.text_context)
        ids = np.full((len(encoded), length), self._text.end, np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(prompt) + len(text)] = [*prompt, *text]
        scores, probabilities = _attend(
            self._graphdef, self._params, encoded, ids, self.config.alignment_heads, self._text.end
        )
        scores, probabilities = np.asarray(scores), np.asarray(probabilities)
        parts = []
        for row, (piece, text) in enumerate(zip(batch, texts, strict=True)):
            if not text:
                parts.append(_Part(piece, ()))
                continue
            stop = len(prompt) + len(text)
            starts = alignment.token_starts(scores[:, row, : stop + 1, : piece.frames], len(prompt))
            edges, tokens = alignment.word_edges(
                piece.words, segmenter, self._text.byte_lengths(text), starts * FRAME / WHISPER_RATE
            )
            confidence = probabilities[row, len(prompt) - 1 : stop - 1]
            words = tuple(
                Word(word, float(start), float(end), float(confidence[first:past].mean()))
                for word, (start, end), (first, past) in zip(
                    piece.words,
                    alignment.spoken_intervals(edges, piece.audio),
                    tokens,
                    strict=True,
                )
            )
            parts.append(_Part(piece, words))
        return parts


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef: Any, params: Any, audio: jax.Array) -> jax.Array:
    whisper = merge(graphdef, params)
    return whisper.encoder(whisper_log_mel(audio, whisper.config.n_mels))[0]


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def greedy(
    graphdef: Any,
    params: Any,
    encoded: jax.Array,
    idle: jax.Array,
    prompt: tuple[int, ...],
    end: int,
) -> jax.Array:
    """The likeliest id at each step, until <|endoftext|>: int32 [B, limit], filled up with it.

    `graphdef` and `params` are those of a Whisper, or of what has its `config` and `decoder`.
    Suppressed are the checkpoint's `suppress_ids`, its `suppress_ids_begin` at the first step
    (openai/whisper's SuppressTokens and SuppressBlank), and everything after <|endoftext|>. Rows
    that are `idle` write nothing.
    """
    whisper = merge(graphdef, params)
    config, decoder = whisper.config, whisper.decoder
    batch, limit = len(encoded), min(MAX_NEW_IDS, config.text_context - len(prompt))
    banned = np.arange(config.vocab_size) > end
    banned[list(config.suppress_ids)] = True
    banned_first = banned.copy()
    banned_first[list(config.suppress_ids_begin)] = True
    cross = decoder.cross(encoded)

    def pick(hidden: jax.Array, banned: np.ndarray, done: jax.Array) -> jax.Array:
        logits = jnp.where(banned, -jnp.inf, decoder.logits(hidden[:, -1]))
        return jnp.where(done, end, jnp.argmax(logits, axis=-1)).astype(jnp.int32)

    out = decoder(
        jnp.tile(jnp.asarray(prompt), (batch, 1)),
        cross,
        cache=decoder.init_cache(batch, len(prompt) + limit),
    )
    first = pick(out.hidden, banned_first, idle)
    ids = jnp.full((batch, limit), end, jnp.int32).at[:, 0].set(first)

    def going(state: tuple) -> jax.Array:
        step, ids, _ = state
        return (step < limit) & jnp.any(ids[:, step - 1] != end)

    def advance(state: tuple) -> tuple:
        step, ids, cache = state
        last = ids[:, step - 1]
        out = decoder(last[:, None], cross, cache=cache, start=len(prompt) + step - 1)
        return step + 1, ids.at[:, step].set(pick(out.hidden, banned, last == end)), out.cache

    return jax.lax.while_loop(going, advance, (1, ids, out.cache))[1]


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _attend(
    graphdef: Any,
    params: Any,
    encoded: jax.Array,
    ids: jax.Array,
    heads: tuple[tuple[int, int], ...],
    end: int,
) -> tuple[jax.Array, jax.Array]:
    """Cross-attention scores [A, B, S, T], and [B, S] the probability of the id after each.

    Probabilities are among text ids alone, as in openai/whisper's find_alignment.
    """
    decoder = merge(graphdef, params).decoder
    out = decoder(ids, decoder.cross(encoded), heads=heads)

    def probability(row: tuple[jax.Array, jax.Array]) -> jax.Array:  # a row's logits at a time
        hidden, following = row
        logits = jax.nn.log_softmax(decoder.logits(hidden)[:, :end], axis=-1)
        return jnp.exp(jnp.take_along_axis(logits, following[:, None], axis=-1)[:, 0])

    following = jnp.minimum(jnp.roll(ids, -1, axis=1), end - 1)
    return out.scores, jax.lax.map(probability, (out.hidden, following))


def _pieces(item: int, audio: np.ndarray) -> list[_Piece]:
    """Cuts a recording into parts of at most 30 s, in the middle of the quietest 0.2 s.

    An empty recording has no parts.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise UserError(
            f"recording {item} has shape {audio.shape}", "give 16 kHz mono samples, one axis"
        )
    cuts, hop = [0], WHISPER_RATE // 100
    while len(audio) - cuts[-1] > WINDOW:
        search = audio[cuts[-1] + WINDOW - SEARCH : cuts[-1] + WINDOW]
        energy = np.convolve((search**2).reshape(-1, hop).sum(axis=1), np.ones(20), "valid")
        quietest = int(energy.argmin()) + 10
        cuts.append(cuts[-1] + WINDOW - SEARCH + quietest * hop)
    cuts.append(len(audio))
    return [
        _Piece(item, start, audio[start:stop], [])
        for start, stop in itertools.pairwise(cuts)
        if stop > start
    ]


def _batches(
    pieces: list[_Piece], batch_size: int, context: Context
) -> Iterator[tuple[list[_Piece], int]]:
    """Pieces of like length, with the number of samples to pad them to."""

    def samples(piece: _Piece) -> int:
        if context == "full":
            return WINDOW
        return next((n for n in BUCKETS if n >= len(piece.audio) + TAIL), WINDOW)

    by_samples: dict[int, list[_Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: len(piece.audio)):
        by_samples.setdefault(samples(piece), []).append(piece)
    for count, group in by_samples.items():
        for at in range(0, len(group), batch_size):
            yield group[at : at + batch_size], count


def _divide(words: list[str], heard: list[list[str]]) -> list[list[str]]:
    """Divides a transcript over windows by matching it with what was heard in each."""
    said = [word.lower() for window in heard for word in window]
    matcher = difflib.SequenceMatcher(None, said, [word.lower() for word in words], autojunk=False)
    blocks = matcher.get_matching_blocks()  # the last one is empty, at both ends
    anchors = [(0, 0)] + [
        edge for b in blocks for edge in ((b.a, b.b), (b.a + b.size, b.b + b.size))
    ]
    x, y = zip(*anchors, strict=True)
    ends = np.cumsum([len(window) for window in heard])
    cuts = [0, *np.rint(np.interp(ends, x, y)).astype(int).tolist()]
    cuts[-1] = len(words)
    return [words[start:stop] for start, stop in itertools.pairwise(cuts)]


def _join(parts: list[_Part], count: int, segmenter: Segmenter) -> list[Transcript]:
    by_item: list[list[_Part]] = [[] for _ in range(count)]
    for part in sorted(parts, key=lambda part: part.piece.start):
        by_item[part.piece.item].append(part)
    return [
        Transcript(
            segmenter.join([word for part in item for word in part.piece.words]),
            tuple(word for part in item for word in part.shifted()),
        )
        for item in by_item
    ]
