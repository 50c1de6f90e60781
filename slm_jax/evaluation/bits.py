"""What a tokenizer costs: every bit that its decoder receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slm_jax.evaluation.bootstrap import ratio
from slm_jax.evaluation.token_statistics import token_statistics
from slm_jax.tokenizers.taste import SPEAKER_BITS


def bit_rate(
    codes: Sequence[np.ndarray],
    vocab: Sequence[int],
    text_ids: Sequence[int],
    text_vocab: int,
    speaker_width: int,
    seconds: Sequence[float],
) -> dict[str, Any]:
    """Bits per second of audio, each part apart.

    Args:
      codes: int [words, levels] of each utterance.
      vocab: codes per level.
      text_ids: how many ids spell the words of each utterance.
      text_vocab: ids that there are to choose from.
      speaker_width: dimensions of the speaker vector, sent once an utterance.
      seconds: of each utterance.

    Returns:
      codes (log2 of the vocabulary each), text, speaker and total, a figure each with `value`,
      `low`, `high` and `n`; codes_entropy and total_entropy, where codes cost the empirical entropy
      of their level; levels: {vocab, used, perplexity} of each.
    """
    parts = {
        "codes": np.array([len(one) for one in codes]) * np.log2(vocab).sum(),
        "text": np.array(text_ids) * np.log2(text_vocab),
        "speaker": np.full(len(codes), speaker_width * SPEAKER_BITS),
    }
    parts["total"] = parts["codes"] + parts["text"] + parts["speaker"]
    rates = {name: ratio(bits, seconds) for name, bits in parts.items()}
    statistics = token_statistics(codes, vocab, sum(seconds))
    entropy = statistics["entropy_bits_per_second"]
    saved = statistics["bits_per_second"] - entropy
    return {
        **{name: rate.to_json() for name, rate in rates.items()},
        "codes_entropy": entropy,
        "total_entropy": rates["total"].value - saved,
        "levels": [
            {key: level[key] for key in ("vocab", "used", "perplexity")}
            for level in statistics["levels"]
        ],
    }
