import jax
import numpy as np
from tiny_models import tiny_taste_config, tiny_whisper

from slm_jax.tokenizers.taste_network import TasteNetwork
from slm_jax.tokenizers.taste_text import PHONES
from slm_jax.tokenizers.whisper import Whisper
from slm_jax.training.fit import FitConfig
from slm_jax.training.spelling import Lines, emissions, learn_to_spell

DICTIONARY = {"a": ("AH",), "cab": ("K", "AE", "B"), "bad": ("B", "AE", "D")}


def test_lines_read_words_and_say_their_phones():
    lines = Lines(DICTIONARY, [["Cab,", "unknown", "bad."]], seed=0)
    batch = lines.collate([(["cab", "a"], {"a": ("AH",)})])
    phone = {name: 256 + i for i, name in enumerate(PHONES)}
    assert batch["ids"][0, 1:6].tolist() == [*b"cab ", phone["AH"]]
    said = {name: 2 + i for i, name in enumerate(PHONES)}
    k, ae, b, ah = (said[name] for name in ("K", "AE", "B", "AH"))
    assert batch["labels"][0, :6].tolist() == [k, ae, b, 1, ah, 0]
    seen = {tuple(row[row > 0]) for step in range(5) for row in lines.batch(4, step)["labels"]}
    assert tuple(lines.said(["cab", "bad"])) in seen  # the transcript, its unknown word left out
    given = np.concatenate([lines.batch(4, step)["ids"] for step in range(5)])
    assert 0.3 < np.mean((given >= 256)[given >= ord("a")]) < 0.7


def test_a_line_has_room_for_its_phones():
    """ "aa" has 4 symbols with its ends, which emit 8: not enough for 9 phones, or 5 equal ones."""
    long = {"aa": ("B", "D") * 4 + ("B",)}
    stuttering, short = {"aa": ("B",) * 5}, {"aa": ("B",) * 4}
    lines = [Lines(words, [["aa"]], seed=0) for words in (long, stuttering, short)]
    assert [line._fits((["aa"], {})) for line in lines] == [False, False, True]
    assert lines[0]._fits((["aa"], long))  # 9 phones that are given emit 22


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
    assert moved["symbols"]["embedding"] > 0
    logits = emissions(
        network, {"decoder": decoder, "head": np.zeros((8, 2 * 41))}, np.ones((1, 5), int)
    )
    assert logits.shape == (1, 10, 41)
