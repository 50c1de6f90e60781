"""Word times from Whisper's cross-attention, in NumPy.

The method is that of openai/whisper's timing.py (`find_alignment`): the attention of chosen heads,
normalised and smoothed, is a matrix of tokens by frames; dynamic time warping finds the monotonic
path through it, and a token starts where the path enters its row. The energy of the audio then
sharpens what that leaves vague.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm_jax.audio.features import WHISPER_RATE
from slm_jax.tokenizers.segmenters import Segmenter

FILTER_WIDTH = 7  # frames of 20 ms
# The attention turns to a word some time after the word began: 90 to 100 ms in the median, for
# two speakers, against pocketsphinx (docs/asr.md).
LAG = 0.1  # seconds
SHORTEST_WORD = 0.04  # seconds
SPEECH_RANGE = 45.0  # dB below the loudest parts that speech reaches down to
ENERGY_HOP, ENERGY_WINDOW = 80, 320  # samples: 5 and 20 ms


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


def word_edges(
    words: Sequence[str],
    segmenter: Segmenter,
    byte_lengths: Sequence[int],
    token_edges: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Boundaries of words, given those of the tokens that write them.

    A word boundary inside a token (characters of Chinese) divides the token's time by bytes.

    Args:
      words: the W words.
      segmenter: joins them; the tokens write `segmenter.separator + segmenter.join(words)`.
      byte_lengths: UTF-8 bytes of each of the n tokens.
      token_edges: [n + 1], start of each token, and the end of the last.

    Returns:
      edges: float [W + 1], ascending.
      tokens: int [W, 2], first and past-the-last token that each word has a part of.
    """
    text = segmenter.separator + segmenter.join(words)
    ends, at = [0], 0
    for word in words:
        at = text.index(word, at) + len(word)
        ends.append(len(text[:at].encode()))
    byte_edges = np.concatenate([[0], np.cumsum(byte_lengths)])
    first = np.searchsorted(byte_edges, ends[:-1], side="right") - 1
    past = np.searchsorted(byte_edges, ends[1:], side="left")
    return np.interp(ends, byte_edges, token_edges), np.stack([first, past], axis=1)


def spoken_intervals(edges: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Where each word is heard, given the boundaries that attention puts between words.

    Boundaries move back by the lag of the attention, words get some length, and silence at
    either end of a word is cut away: pauses belong to no word.

    Args:
      edges: [W + 1] seconds, ascending.
      audio: [n] samples at 16 kHz, not empty.

    Returns:
      float [W, 2] seconds, start < end, in order, without overlap, inside the audio.
    """
    count, duration = len(edges) - 1, len(audio) / WHISPER_RATE
    shortest = min(SHORTEST_WORD, duration / count)
    ramp = np.arange(count + 1) * shortest
    edges = np.concatenate([edges[:1], edges[1:-1] - LAG, edges[-1:]])
    edges = np.maximum.accumulate(np.maximum(edges, 0.0) - ramp) + ramp
    edges = np.minimum(edges, duration - ramp[::-1])
    active = _active(audio)
    intervals = np.stack([edges[:-1], edges[1:]], axis=1)
    for interval in intervals:
        start, stop = np.rint(interval * WHISPER_RATE / ENERGY_HOP).astype(int)
        heard = start + np.flatnonzero(active[start:stop])
        if len(heard) and (heard[-1] + 1 - heard[0]) * ENERGY_HOP >= shortest * WHISPER_RATE:
            trimmed = np.array([heard[0], heard[-1] + 1]) * ENERGY_HOP / WHISPER_RATE
            interval[:] = np.clip(trimmed, *interval)
    return intervals


def _active(audio: np.ndarray) -> np.ndarray:
    """bool [n / ENERGY_HOP]: whether the level there stands out of the background."""
    count, half = -(-len(audio) // ENERGY_HOP), ENERGY_WINDOW // 2
    power = np.pad(audio.astype(np.float64) ** 2, (half, half + ENERGY_HOP))
    total = np.concatenate([[0.0], np.cumsum(power)])
    at = np.arange(count) * ENERGY_HOP + ENERGY_HOP // 2
    level = 10 * np.log10((total[at + ENERGY_WINDOW] - total[at]) / ENERGY_WINDOW + 1e-10)
    floor, peak = np.percentile(level, [5, 98])
    return level > max(peak - SPEECH_RANGE, floor + 0.2 * (peak - floor))
