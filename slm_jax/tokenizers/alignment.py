"""Word times from Whisper's cross-attention, in NumPy.

The method is that of openai/whisper's timing.py (`find_alignment`): the attention of chosen heads,
normalised and smoothed, is a matrix of tokens by frames; dynamic time warping finds the monotonic
path through it, and a token starts where the path enters its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm_jax.data.schema import Word
from slm_jax.tokenizers.segmenters import Segmenter

FILTER_WIDTH = 7  # frames of 20 ms
ENERGY_HOP = 80  # samples at 16 kHz: 5 ms
ENERGY_WINDOW = 320


def token_starts(scores: np.ndarray, prompt: int) -> np.ndarray:
    """Frames at which text tokens start.

    Args:
      scores: [A, N, T], cross-attention before its softmax of A heads, for prompt, n text ids and
        the end id (N = prompt + n + 1), over the T frames of the audio itself.
      prompt: ids before the text.

    Returns:
      int [n + 1], ascending: first frame of each text id, and of what follows the last.
    """
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    weights -= weights.mean(axis=1, keepdims=True)
    weights /= np.maximum(weights.std(axis=1, keepdims=True), 1e-10)
    # The row of an id attends to what it predicts, so that of the first text id is the row before.
    matrix = median_filter(weights, FILTER_WIDTH).mean(axis=0)[prompt - 1 : -1]
    return dtw_row_starts(-matrix)


def median_filter(x: np.ndarray, width: int) -> np.ndarray:
    """Median over `width` (odd) neighbours on the last axis, which is reflected at its ends."""
    half = width // 2
    if x.shape[-1] <= half:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    return np.partition(windows, half, axis=-1)[..., half]


def dtw_row_starts(cost: np.ndarray) -> np.ndarray:
    """Dynamic time warping: the first column of each row on the cheapest path.

    The path goes from the first cell to the last by steps of one row, one column, or both (Sakoe
    & Chiba 1978).

    Args:
      cost: [N, T].

    Returns:
      int [N], ascending, the first is 0.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[1:, 1:] = cost
    total[0, 0] = 0.0
    # Cells of one anti-diagonal do not depend on each other; in the flat array they, and their
    # predecessors, lie `columns` apart.
    flat, width = total.reshape(-1), columns + 1
    for diagonal in range(2, rows + columns + 1):
        first, last = max(1, diagonal - columns), min(rows, diagonal - 1)
        start, span = first * width + diagonal - first, (last - first) * columns + 1
        both, row, column = (
            flat[start - step : start - step + span : columns] for step in (width + 1, width, 1)
        )
        flat[start : start + span : columns] += np.minimum(np.minimum(both, row), column)

    starts = np.zeros(rows, np.int64)
    i, j = rows, columns
    while i > 1 or j > 1:
        both, row, column = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if both < row and both < column:
            starts[i - 1] = j - 1
            i, j = i - 1, j - 1
        elif row < column:
            starts[i - 1] = j - 1
            i -= 1
        else:
            j -= 1
    return starts


def place_words(
    words: Sequence[str],
    segmenter: Segmenter,
    byte_lengths: Sequence[int],
    edges: np.ndarray,
    probabilities: np.ndarray,
) -> tuple[Word, ...]:
    """Puts words on the time axis, given the tokens that write them.

    A word boundary inside a token (characters of Chinese) divides the token's time by bytes.

    Args:
      words: the W words.
      segmenter: joins them; the tokens write `segmenter.separator + segmenter.join(words)`.
      byte_lengths: UTF-8 bytes of each of the n tokens.
      edges: [n + 1] seconds, start of each token, and the end of the last.
      probabilities: [n] of each token; a word's confidence is their mean.
    """
    text = segmenter.separator + segmenter.join(words)
    ends, at = [], 0
    for word in words:
        at = text.index(word, at) + len(word)
        ends.append(len(text[:at].encode()))
    token_edges = np.concatenate([[0], np.cumsum(byte_lengths)])
    word_edges = np.concatenate([[0], ends])
    times = np.interp(word_edges, token_edges, edges)
    first = np.searchsorted(token_edges, word_edges[:-1], side="right") - 1
    last = np.searchsorted(token_edges, word_edges[1:], side="left")
    return tuple(
        Word(word, float(times[i]), float(times[i + 1]), float(probabilities[a:b].mean()))
        for i, (word, a, b) in enumerate(zip(words, first, last, strict=True))
    )
