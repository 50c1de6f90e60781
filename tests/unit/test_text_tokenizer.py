import json

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from slm_jax.errors import UserError
from slm_jax.tokenizers.text import CUTS, TextTokenizer, encode_words

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "l l", "e ll", "H ell", "Hell o", "1 2", "12 3"]


def write_gguf(path, cut="smollm", model="gpt2", merges=MERGES):
    pieces = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [merge.replace(" ", "") for merge in merges]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("general.basename", "Tiny LM")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(pieces)
    writer.add_token_merges(merges)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(pieces) - len(SPECIAL)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return TextTokenizer.load(write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf"))


def test_merges_special_ids_and_pieces(tokenizer):
    ids = tokenizer.encode("Hello the 12")
    assert [tokenizer.pieces[id] for id in ids] == ["Hello", "Ġthe", "Ġ", "1", "2"]
    assert tokenizer.special == {0, 1, 2}
    assert tokenizer.vocab_size == 3 + 256 + len(MERGES)
    assert tokenizer.decode([1, *ids, 2]) == "Hello the 12"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.name == "tiny-lm"


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", ["Ġ", "123", "4", "Ċ", "Ċ", "x"]),
        ("smollm", ["Ġ", "1", "2", "3", "4", "Ċ", "Ċ", "x"]),
        ("llama-bpe", ["Ġ", "123", "4", "Ċ", "Ċ", "x"]),
        ("qwen2", ["Ġ", "1", "2", "3", "4", "Ċ", "Ċ", "x"]),
    ],
)
def test_families_cut_digits_in_their_own_ways(tmp_path, cut, pieces):
    tokenizer = TextTokenizer.load(write_gguf(tmp_path / "x.gguf", cut))
    assert [tokenizer.pieces[id] for id in tokenizer.encode(" 1234\n\nx")] == pieces


def test_special_tokens_in_a_transcript_are_plain_text(tokenizer):
    assert not tokenizer.special & set(tokenizer.encode("Hello <|im_end|>"))


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30))
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("aHello,ñ日", min_size=1, max_size=5), max_size=6))
def test_ids_of_words_spell_the_joined_text(tokenizer, words):
    ids, index = encode_words(tokenizer, words, "en")
    assert tokenizer.decode(ids) == " ".join(words)
    assert len(ids) == len(index) and sorted(set(index)) == list(range(len(words)))
    assert index == sorted(index)


def test_words_of_a_language_without_spaces(tokenizer):
    ids, _ = encode_words(tokenizer, ["日", "本", "the"], "ja")
    assert tokenizer.decode(ids) == "日本the"


@pytest.mark.parametrize("cut", CUTS)
def test_json_and_gguf_agree(tmp_path, cut):
    tokenizer = TextTokenizer.load(write_gguf(tmp_path / "x.gguf", cut))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    roles = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles))
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": [0], "bos_token_id": 5}))
    other = TextTokenizer.load(tmp_path, name="Tiny LM")
    text = "Hello the llama, 100 <|im_end|> naïve"
    assert other.encode(text) == tokenizer.encode(text)
    assert (other.bos_id, other.eos_id, other.pad_id) == (1, 2, 0)
    for trait in ("special", "fingerprint", "pieces", "name"):
        assert getattr(other, trait) == getattr(tokenizer, trait)


def test_fingerprint_follows_the_content(tokenizer, tmp_path):
    same = TextTokenizer.load(write_gguf(tmp_path / "same.gguf"))
    fewer = TextTokenizer.load(write_gguf(tmp_path / "fewer.gguf", merges=MERGES[:2]))
    cut = TextTokenizer.load(write_gguf(tmp_path / "cut.gguf", cut="gpt-2"))
    assert same.fingerprint == tokenizer.fingerprint
    assert len({same.fingerprint, fewer.fingerprint, cut.fingerprint}) == 3


def test_unknown_kinds_and_damage_are_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match="kind llama"):
        TextTokenizer.load(write_gguf(tmp_path / "spm.gguf", model="llama"))
    with pytest.raises(UserError, match="does not exist"):
        TextTokenizer.load(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("hello")
    with pytest.raises(UserError, match="no tokenizer"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    with pytest.raises(UserError, match="names no end-of-text token"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        TextTokenizer.load(tmp_path)
