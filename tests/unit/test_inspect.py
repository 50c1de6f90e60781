import subprocess
import sys

import numpy as np
import pytest

from slm_jax.data import inspect, schema, shards
from slm_jax.data.dataset import write_dataset
from slm_jax.data.manifest import add_tombstones
from slm_jax.data.schema import AudioItem, StreamItem, Utterance, Word
from slm_jax.errors import UserError
from slm_jax.streams import StreamSpec


@pytest.fixture
def root(tmp_path):
    def record(i):
        words = (Word("hello", 0.1, 0.5, 0.9), Word("[world]", 0.5, 1.25, 0.7))
        ids = np.array([[5], [6], [77]], np.int32)
        return {
            "words": Utterance(f"u{i}", words, "en", "allison", 1.5, "prompts/hello", "Hello!"),
            "audio": AudioItem(f"u{i}", bytes(1234)),
            "text-toy": StreamItem(f"u{i}", ids, np.array([0, 1, 1], np.int32)),
            "taste": StreamItem(f"u{i}", np.array([[11, 12], [13, 14]], np.int32)),
            "speaker": StreamItem(f"u{i}", np.full((1, 40), 0.25, np.float32)),
        }

    specs = [
        schema.words_spec("asr1"),
        schema.audio_spec(),
        StreamSpec("text-toy", "codes", "word", (100,), fingerprint="bpe1"),
        StreamSpec("taste", "codes", "word", (64, 32), fingerprint="taste1", lookahead=29),
        StreamSpec("speaker", "continuous", "utterance", width=40, fingerprint="spk1"),
    ]
    splits = {"train": [record(i) for i in range(4)], "test": [record(9)]}
    write_dataset(tmp_path, "toy", specs, splits, licences=["CC-BY-SA-3.0"], command="make toy")
    lines = ['{"reason": "too short"}', '{"reason": "silent"}', '{"reason": "silent"}']
    (tmp_path / "quarantine.jsonl").write_text("\n".join(lines) + "\n")
    add_tombstones(tmp_path, {"u3": "consent withdrawn"})
    return tmp_path


def shown(capsys, *args):
    inspect.main([str(a) for a in args])
    return capsys.readouterr().out


def row(text, first):
    lines = [[cell.strip() for cell in li.strip("│┃").split("│")] for li in text.splitlines()]
    [found] = [cells for cells in lines if cells[0] == first and len(cells) > 1]
    return found


def test_the_overview_says_what_there_is(root, capsys):
    text = shown(capsys, root)
    assert "CC-BY-SA-3.0" in text and "make toy" in text
    assert row(text, "taste")[:6] == ["taste", "codes", "word", "64 32", "29 s", "taste1"]
    assert row(text, "speaker")[2:4] == ["utterance", "width 40"]
    assert row(text, "audio")[2] == "16000 Hz"
    assert row(text, "train") == ["train", "3", "0.001", "6", "1.33", "0.800", "1", "en"]
    assert row(text, "consent withdrawn")[1] == "1"
    assert row(text, "silent")[1] == "2"


def test_a_record_is_a_table_of_words(root, capsys):
    text = shown(capsys, root, "--split", "test", "--index", "0")
    assert "1.50 s, language en, speaker allison, from prompts/hello" in text
    assert row(text, "0") == ["0", "hello", "0.10", "0.50", "0.90", "5", "11 12"]
    assert row(text, "1") == ["1", "[world]", "0.50", "1.25", "0.70", "6 77", "13 14"]
    assert "audio: 1,234 bytes of FLAC" in text
    assert "speaker [1, 40]: [0.25" in text


def test_verify_and_errors(root, capsys):
    assert "every checksum fits" in shown(capsys, root, "--verify")
    with pytest.raises(UserError, match="no record 3 in split 'train'"):
        inspect.main([str(root), "--index", "3"])
    path = root / "taste" / shards.shard_name("train", 0, 1)
    data = bytearray(path.read_bytes())
    data[-70_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}"):
        inspect.main([str(root), "--verify"])


def test_the_command_prints_one_error(tmp_path):
    command = [sys.executable, "-m", "slm_jax.data.inspect", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "is not a complete dataset" in run.stderr and "Traceback" not in run.stderr
