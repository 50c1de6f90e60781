import jax
import numpy as np
import pytest
from tiny_models import tiny_taste_config, tiny_whisper

from slm_jax.errors import UserError
from slm_jax.tokenizers.taste_network import TasteNetwork
from slm_jax.tokenizers.whisper import Whisper
from slm_jax.training.fit import FitConfig
from slm_jax.training.spelling import Lines, emissions, learn_to_spell, read_dictionary

DICTIONARY = {"a": ("AH",), "cab": ("K", "AE", "B"), "bad": ("B", "AE", "D")}


def test_a_dictionary_is_read_without_stress_variants_and_symbols(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text("cab K AE1 B\ncab(2) K AH0 B\ndon't D OW1 N T\n.dot D AA1 T\nempty\n")
    assert read_dictionary(path) == {"cab": ("K", "AE", "B"), "don't": ("D", "OW", "N", "T")}
    assert read_dictionary(tmp_path) == read_dictionary(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="no pronunciations"):
        read_dictionary(path)
    with pytest.raises(UserError, match="is no pronouncing dictionary"):
        read_dictionary(tmp_path / "elsewhere")


def test_lines_spell_words_and_say_their_phones():
    lines = Lines(DICTIONARY, [["Cab,", "unknown", "bad."]], seed=0)
    assert lines.phones == ["AE", "AH", "B", "D", "K"] and lines.classes == 7
    batch = lines.collate([["cab", "a"]])
    assert bytes(batch["ids"][0, 1:6].astype(np.uint8)) == b"cab a"
    assert batch["labels"][0, :6].tolist() == [6, 2, 4, 1, 3, 0]
    seen = {tuple(row[row > 0]) for step in range(5) for row in lines.batch(4, step)["labels"]}
    assert tuple(lines.said(["cab", "bad"])) in seen  # the transcript, its unknown word left out


def test_a_line_has_room_for_its_phones():
    """ "aa" has 4 bytes with its ends, which emit 8: not enough for 9 phones, or 5 equal ones."""
    long = {"aa": ("B", "D") * 4 + ("B",)}
    assert Lines(long, [["aa"]], seed=0)._line(np.random.default_rng(0)) == []
    stuttering = {"aa": ("B",) * 5}
    assert Lines(stuttering, [["aa"]], seed=0)._line(np.random.default_rng(0)) == []
    short = {"aa": ("B",) * 4}
    assert Lines(short, [["aa"]], seed=0)._line(np.random.default_rng(0)) == ["aa"]


def test_batches_are_a_function_of_their_step():
    lines = Lines(DICTIONARY, [], seed=1)
    again = Lines(DICTIONARY, [], seed=1)
    for name, value in lines.batch(2, 2).items():
        np.testing.assert_array_equal(value, again.batch(2, 2)[name])
    assert (lines.batch(2, 2)["ids"] != lines.batch(2, 3)["ids"]).any()


def test_the_stage_changes_the_text_stack_alone_and_resumes(tmp_path, capsys):
    whisper = tiny_whisper(tmp_path / "whisper")
    network = TasteNetwork(tiny_taste_config(), Whisper.load(whisper).config)
    decoder = network.init(0)["decoder"]
    lines = Lines(DICTIONARY, [], seed=0)
    trained = [
        learn_to_spell(
            tmp_path / "run",
            network,
            decoder,
            lines,
            FitConfig(n, 1, 1),
            rows=2,
            peak_lr=1e-2,
            seed=0,
        )
        for n in (1, 2)
    ]
    assert "spelling: resuming at step 1 of 2" in capsys.readouterr().out
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), decoder, trained[1])
    assert moved["bytes"]["embedding"] > 0
    logits = emissions(
        network, {"decoder": decoder, "head": np.zeros((8, 14))}, np.ones((1, 5), int)
    )
    assert logits.shape == (1, 10, 7)
