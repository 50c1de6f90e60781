"""What a stream is: one sequence of ids, vectors or encoded audio, on one clock.

Terms: a *stream* has `levels` codebook levels (0 is coarse); its *clock* says what one item
lasts: a fixed rate in Hz, one word (TASTE tokens, text ids), or the whole utterance (a speaker
vector).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any, Literal

Kind = Literal["words", "codes", "continuous", "audio"]
WORD = "word"
UTTERANCE = "utterance"


@dataclasses.dataclass(frozen=True)
class StreamSpec:
    """Identity of a stream, as the manifest stores it.

    Attributes:
      name: family name in a dataset, e.g. "taste", "text-smollm2", "speaker", "audio".
      kind: "words" (the transcript), "codes" (int32 [n, levels]), "continuous" (float [n, width])
        or "audio" (FLAC bytes).
      clock: "word", "utterance", or a rate in Hz as a float.
      vocab: ids per level, coarse first; empty unless kind is "codes".
      width: vector width; 0 unless kind is "continuous".
      fingerprint: digest of whatever produced the stream (weights, settings); two streams are
        interchangeable if and only if their fingerprints are equal.
      lookahead: seconds of audio behind the time of an item that it depends on, at most.
    """

    name: str
    kind: Kind
    clock: str | float
    vocab: tuple[int, ...] = ()
    width: int = 0
    fingerprint: str = ""
    lookahead: float = 0.0

    @property
    def levels(self) -> int:
        return len(self.vocab)

    @property
    def bits(self) -> float:
        """Bits of one item of codes; times `clock`, where that is a rate, bits a second."""
        return sum(map(math.log2, self.vocab))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"vocab": list(self.vocab)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StreamSpec:
        return cls(**(data | {"vocab": tuple(data["vocab"])}))


def fingerprint(*parts: Any) -> str:
    """16 hex digits over bytes, strings and JSON-able values, in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]
