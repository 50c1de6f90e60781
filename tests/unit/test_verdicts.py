"""Judges that remember what they said."""

import numpy as np
import pytest

from slm_jax.evaluation.scores import Judges
from slm_jax.evaluation.verdicts import remembering

ONE, TWO = np.full(4, 0.1, np.float32), np.full(4, 0.2, np.float32)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def judges(asked):
    def listen(clips):
        asked.extend(["hear"] * len(clips))
        return [f"level {clip[0]:.1f}" for clip in clips]

    def note(name, verdict):
        asked.append(name)
        return verdict

    return Judges(
        {"ears": listen},
        lambda clip, words: note("align", [(0.0, float(clip[0])), None][: len(words)]),
        lambda clip: note("embed", np.array([clip[0], 1.0])),
        lambda clip: note("quality", float(clip[0])),
        lambda clips, texts: note("realign", []),
    )


def verdicts(judges, clip, words=("a", "b")):
    spoken = judges.transcribe["ears"]([clip])
    return spoken, judges.align(clip, words), judges.embed(clip).tolist(), judges.quality(clip)


def test_a_clip_is_judged_once_also_by_another_process(tmp_path, judges, asked):
    path = tmp_path / "new" / "verdicts.jsonl"
    first = verdicts(remembering(judges, path), ONE)
    assert first == verdicts(judges, ONE)
    asked.clear()
    assert verdicts(remembering(judges, path), ONE) == first and asked == []
    assert first[1] == [(0.0, float(ONE[0])), None]


def test_other_clips_and_other_words_are_judged(tmp_path, judges, asked):
    judges = remembering(judges, tmp_path / "verdicts.jsonl")
    heard = judges.transcribe["ears"]
    assert heard([ONE, TWO, ONE]) == ["level 0.1", "level 0.2", "level 0.1"]
    assert asked == ["hear", "hear"]
    judges.align(ONE, ["a"])
    judges.align(ONE, ["b"])
    assert asked[2:] == ["align", "align"]


def test_a_line_cut_short_is_judged_again_and_the_file_stays_sound(tmp_path, judges, asked):
    path = tmp_path / "verdicts.jsonl"
    verdicts(remembering(judges, path), ONE)
    path.write_text(path.read_text()[:-9])
    asked.clear()
    verdicts(remembering(judges, path), ONE)
    assert asked == ["quality"]
    asked.clear()
    verdicts(remembering(judges, path), ONE)
    assert asked == []
