"""What the parity tests of all neural codecs share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slm_jax.errors import UserError

TOLERANCE = 1e-4  # of waveforms


def noise(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Rows of Gaussian samples."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=n).astype(np.float32) for n in lengths]


def padded(rows: list[np.ndarray], rubbish: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows as a batch and their lengths; what lies beyond a row's end is not silence."""
    lengths = np.array([len(row) for row in rows], np.int32)
    batch = np.full((len(rows), lengths.max()), rubbish, np.float32)
    for row, into in zip(rows, batch, strict=True):
        into[: len(row)] = row
    return batch, lengths


def assert_varied(codes: np.ndarray, least: int = 8) -> None:
    """A level whose codes [..., K] are all alike would hide what is wrong."""
    counts = [len(np.unique(codes[..., level])) for level in range(codes.shape[-1])]
    assert min(counts) >= least, counts


def assert_near(ours, theirs, tolerance: float = TOLERANCE) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-2, "nearly silent: a comparison would prove nothing"
    assert np.abs(ours - theirs).max() <= tolerance


def assert_lookahead(codec, audio: np.ndarray, frame: int) -> None:
    """Whether `frame` depends on the last sample that its lookahead says, and on none after."""
    samples = codec.sample_rate / codec.spec.clock
    last = round((frame + 1) * samples + codec.spec.lookahead * codec.sample_rate) - 1
    assert last + 1 < len(audio)

    def encode(row: np.ndarray) -> np.ndarray:
        return codec._encode(row[None], np.array([len(row)]))[0]  # as NaN is refused before

    before = encode(audio)
    spoiled = audio.copy()
    spoiled[last + 1 :] = np.nan  # wherever it is seen, it wins
    after = encode(spoiled)
    np.testing.assert_array_equal(before[0, : frame + 1], after[0, : frame + 1])
    spoiled[last] = np.nan
    after = encode(spoiled)
    assert before[0, frame, 0] != after[0, frame, 0]


def assert_refused(load: Callable, folder: Path, place: Path, missing: str) -> None:
    """A tensor that lacks, one too many, one of another shape, and another model's config."""
    shutil.copy(folder / "config.json", place)
    file = place / "model.safetensors"
    file.unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        load(place)
    name = next(name for name in tensors if missing in name)
    lacking = {other: x for other, x in tensors.items() if other != name}
    save_file(lacking | {"surprise": np.zeros(2, np.float32)}, file)
    with pytest.raises(UserError, match=rf"missing \['\S*{missing}'\], unexpected \['surprise'\]"):
        load(place)
    bias = next(name for name in tensors if name.endswith(".bias"))
    save_file(tensors | {bias: np.zeros(3, np.float32)}, file)
    with pytest.raises(UserError, match=r"misshapen: \S+bias \(3,\)"):
        load(place)
    file.write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="not a safetensors file"):
        load(place)
