"""The unit vocoder's batches and losses: padding counts nowhere, and each loss hears its part."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from slm_jax.tokenizers.flow_matching import FlowConfig
from slm_jax.tokenizers.taste_decoder import Frames
from slm_jax.tokenizers.unit_vocoder import UnitNetwork, UnitVocoderConfig
from slm_jax.tokenizers.vocoder import VocoderConfig
from slm_jax.training.unit_vocoder_job import Example, collate, losses

CONFIG = UnitVocoderConfig(
    units=10,
    mels="flow",
    width=8,
    mlp=8,
    duration_layers=1,
    unit_layers=1,
    frame_layers=1,
    speaker_width=4,
    flow=FlowConfig(width=8, mlp=8, layers=1),
    vocoder=VocoderConfig(width=8, mlp=8, layers=1),
)


def example(count, frames, seed=0):
    rng = np.random.default_rng(seed)
    units = np.repeat(rng.integers(0, 10, count), 2)[:count].astype(np.int32)
    heard = Frames(
        rng.normal(size=(frames, 40)).astype(np.float16),
        rng.normal(size=frames).astype(np.float16),
        rng.integers(0, 2, frames).astype(np.float16),
    )
    return Example(units, heard, np.zeros(frames * 256, np.float16))


def lost(batch, share=0.0):
    network = UnitNetwork(CONFIG, rngs=nnx.Rngs(0))
    return jax.device_get(losses(network, batch, jax.random.key(0), share))


def test_a_batch_has_what_units_and_audio_both_have():
    few, many = example(100, 124), example(40, 60)  # 40 units lie between 51 mel frames
    batch = collate([few, many], CONFIG)
    assert batch["units"].shape == (2, 150) and batch["mel"].shape == (2, 189, 40)
    assert batch["mask"].sum(1).tolist() == [124, 51]
    assert batch["lengths"].tolist() == [100, 40] and (batch["units"][1, 40:] == -1).all()
    assert batch["durations"].sum(1).tolist() == [100, 40]
    runs = batch["runs"][1]
    assert (np.diff(runs[runs >= 0]) != 0).all()
    np.testing.assert_array_equal(batch["mel"][1, :51], many.heard.mel[:51])
    assert collate([example(151, 190)], CONFIG)["units"].shape == (1, 300)


def test_what_lies_behind_the_end_is_not_lost():
    batch = collate([example(100, 124), example(40, 60)], CONFIG)
    noisy = {name: part.copy() for name, part in batch.items()}
    behind = batch["mask"] == 0
    for name in ("mel", "pitch", "voiced"):
        noisy[name][behind] = 1.0
    before, after = lost(batch), lost(noisy)
    assert set(before) == {"mel", "pitch", "voicing", "duration", "flow"}
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=1e-5), name


def test_losses_hear_their_parts():
    batch = collate([example(100, 124)], CONFIG)
    before = lost(batch)
    longer = lost(batch | {"durations": 3 * batch["durations"]})
    assert longer["duration"] != before["duration"] and longer["mel"] == before["mel"]
    forgetful = lost(batch, share=1.0)
    assert forgetful["flow"] != before["flow"] and forgetful["mel"] == before["mel"]
    regression = UnitNetwork(dataclasses.replace(CONFIG, mels="regression"), rngs=nnx.Rngs(0))
    assert "flow" not in losses(regression, batch, jax.random.key(0), 0.0)
