"""How the clips of the spoken evaluation are judged."""

import numpy as np

from slm_jax.evaluation.spoken import LIKENESS, QUALITY, Ears, _Clip, _sound, _voices


def clips(levels):
    return [_Clip("clip", "a word", np.full(8, level, np.float32)) for level in levels]


def voice(audio):
    """Unit vectors at an angle that the clip's level gives."""
    return np.array([np.cos(audio[0]), np.sin(audio[0])])


def test_a_clip_is_compared_with_the_other_originals_of_its_speaker():
    originals = clips([0.0, 0.2, 0.9])
    ears = Ears({}, voice=voice)
    recorded = _voices(originals, ears)
    [row] = _sound(clips([0.5, 0.2, 0.0]), recorded, ["a", "a", "b"], ears)
    # Clip 0 against original 1, clip 1 against original 0; b has no other utterance.
    assert row["figure"] == LIKENESS and row["n"] == 2
    np.testing.assert_allclose(row["value"], (np.cos(0.3) + np.cos(0.2)) / 2)
    [own] = _sound(originals, recorded, ["a", "a", "b"], ears)
    np.testing.assert_allclose(own["value"], np.cos(0.2))  # never with itself


def test_failed_clips_are_not_scored_and_absent_judges_leave_no_row():
    said = [*clips([2.0, 4.0]), _Clip("clip", "lost", np.zeros(0, np.float32))]
    none = [None] * 3
    [row] = _sound(said, none, ["a"] * 3, Ears({}, quality=lambda audio: audio[0]))
    assert row["figure"] == QUALITY and (row["value"], row["n"]) == (3.0, 2)
    assert _sound(said, none, ["a"] * 3, Ears({})) == []
    lost = [_Clip("clip", "lost", np.zeros(0, np.float32))]
    assert _voices(lost, Ears({}, voice=voice)) == [None]
    assert _sound(lost, [None], ["a"], Ears({}, quality=lambda audio: audio[0])) == []
