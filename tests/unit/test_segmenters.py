import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.tokenizers.segmenters import CharacterSegmenter, WhitespaceSegmenter, segmenter_for


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("今天天气很好。", ["今", "天", "天", "气", "很", "好。"]),
        ("我有 iPhone 15 Pro，你呢？", ["我", "有", "iPhone", "15", "Pro，", "你", "呢？"]),
        ("他说：「好」", ["他", "说：", "「好」"]),
        ("ラーメン", ["ラー", "メ", "ン"]),
        ("人々が", ["人々", "が"]),
        ("กำลัง", ["ก", "ำ", "ลั", "ง"]),
        ("3.5米", ["3.5", "米"]),
        ("", []),
    ],
)
def test_characters(text, words):
    assert CharacterSegmenter().split(text) == words


def test_characters_join_keeps_latin_words_apart():
    segmenter = CharacterSegmenter()
    for text in ("我有iPhone 15 Pro，你呢？", "v2. 0", "Pro- x"):
        assert segmenter.join(segmenter.split(text)) == text


def test_whitespace():
    segmenter = WhitespaceSegmenter()
    assert segmenter.split("  Press one,\tplease.\n") == ["Press", "one,", "please."]
    assert segmenter.join(["Press", "one."]) == "Press one."


@settings(max_examples=100)
@given(
    st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé1. '-好「」、ー")))
)
@pytest.mark.parametrize("segmenter", [WhitespaceSegmenter(), CharacterSegmenter()])
def test_split_of_join_is_stable(segmenter, text):
    words = segmenter.split(text)
    assert all(words) and not any(ch.isspace() for word in words for ch in word)
    assert "".join(words) == "".join(ch for ch in text if not ch.isspace())
    assert segmenter.split(segmenter.join(words)) == words


@pytest.mark.parametrize(
    ("language", "kind"),
    [
        ("en", WhitespaceSegmenter),
        ("zh", CharacterSegmenter),
        ("ja", CharacterSegmenter),
        ("zh-Hant-TW", CharacterSegmenter),
        ("JA_jp", CharacterSegmenter),
        ("ko", WhitespaceSegmenter),
    ],
)
def test_segmenter_for(language, kind):
    assert type(segmenter_for(language)) is kind
