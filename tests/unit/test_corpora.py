import json

import pytest

from data_pipelines import corpora, quarantine, text_corpus
from data_pipelines.corpora import Defaults
from slm_jax.errors import UserError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RIFF")
    return path


def test_asterisk_prompts(tmp_path):
    for name in ("hello", "digits/1", "beep", "at", "unlisted"):
        touch(tmp_path / "sounds" / f"{name}.g722")
    (tmp_path / "transcripts.txt").write_text(
        "\ufeff; a comment: not an entry\n\nhello: Hello,  world: again.\ndigits/1: one\n"
        "beep: [a tone]\nat: at [@]\ngone: Gone.\nhello: twice\n",
        encoding="utf-8",
    )
    found, rejected = corpora.read("asterisk", tmp_path, Defaults())
    assert {u.id: u.text for u in found} == {
        "asterisk-en/hello": "Hello, world: again.",
        "asterisk-en/digits/1": "one",
        "asterisk-en/at": "at",
    }
    assert found[0].licence == "CC-BY-SA-3.0"
    assert {(r.id.split("/", 1)[1], r.reason) for r in rejected} == {
        ("beep", quarantine.NOT_SPEECH),
        ("gone", quarantine.NO_AUDIO),
        ("hello", quarantine.DUPLICATE),
        ("unlisted", quarantine.NO_TRANSCRIPT),
    }


def test_librispeech_tree(tmp_path):
    chapter = tmp_path / "dev-clean" / "84" / "121123"
    touch(chapter / "84-121123-0000.flac")
    (chapter / "84-121123.trans.txt").write_text(
        "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 MISSING\n"
    )
    found, rejected = corpora.read("librispeech", tmp_path, Defaults())
    (one,) = found
    assert (one.id, one.text, one.speaker) == ("84-121123-0000", "go do you hear", "84")
    assert one.licence == "CC-BY-4.0"
    assert [r.reason for r in rejected] == [quarantine.NO_AUDIO]


def test_libritts_tree(tmp_path):
    chapter = tmp_path / "84" / "121123"
    touch(chapter / "84_121123_000007_000001.wav")
    (chapter / "84_121123_000007_000001.normalized.txt").write_text("Is it true?\n")
    (chapter / "84_121123_000007_000001.original.txt").write_text("no")
    ((one,), _) = corpora.read("libritts", tmp_path, Defaults())
    assert (one.text, one.speaker, one.audio.suffix) == ("Is it true?", "84", ".wav")


def test_ljspeech_takes_the_normalised_text(tmp_path):
    touch(tmp_path / "wavs" / "LJ001-0001.wav")
    (tmp_path / "metadata.csv").write_text("LJ001-0001|In 1455|In fourteen\nbroken\n")
    ((one,), rejected) = corpora.read("ljspeech", tmp_path, Defaults())
    assert (one.id, one.text, one.speaker) == ("LJ001-0001", "In fourteen", "LJ")
    assert [r.reason for r in rejected] == [quarantine.BAD_ENTRY]


def test_jsonl_manifest(tmp_path):
    touch(tmp_path / "a.wav")
    lines = [
        json.dumps({"audio": "a.wav", "text": "Hi.", "speaker": "s", "start": 0.5, "end": 1}),
        json.dumps({"audio": "a.wav", "start": 1, "end": 2}),
        json.dumps({"audio": "gone.wav"}),
        json.dumps({"text": "no audio"}),
        json.dumps({"audio": "a.wav", "start": "soon"}),
        "{broken",
        "",
        "[1]",
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(lines))
    found, rejected = corpora.read("jsonl", manifest, Defaults("fr", "someone", "CC0"))
    assert [u.id for u in found] == ["a.wav@0.5", "a.wav@1"]
    assert (found[0].start, found[0].end, found[0].speaker) == (0.5, 1.0, "s")
    assert (found[1].text, found[1].language, found[1].licence) == (None, "fr", "CC0")
    assert quarantine.summary(rejected) == {quarantine.BAD_ENTRY: 4, quarantine.NO_AUDIO: 1}
    assert rejected[-1].id == f"{manifest}:8"


def test_any_folder_with_and_without_transcripts(tmp_path):
    touch(tmp_path / "anna" / "one.WAV")
    touch(tmp_path / "two.opus")
    (tmp_path / "anna" / "one.txt").write_text(" Hello \n there ")
    (tmp_path / "notes.txt").write_text("not audio")
    found, _ = corpora.read("folder", tmp_path, Defaults(speaker="me"))
    assert [(u.id, u.text, u.speaker) for u in found] == [
        ("anna/one.WAV", "Hello there", "anna"),
        ("two.opus", None, "me"),
    ]


def test_sphinx_transcription(tmp_path):
    touch(tmp_path / "book-01.wav")
    (tmp_path / "transcription").write_text(
        "<s> he was not an ill disposed young man </s> (book-01)\nplain (gone)\nno name\n"
    )
    found, rejected = corpora.read("sphinx", tmp_path, Defaults(speaker="reader"))
    (one,) = found
    assert (one.id, one.text) == ("book-01", "he was not an ill disposed young man")
    assert one.speaker == "reader" and one.audio == tmp_path / "book-01.wav"
    assert [r.reason for r in rejected] == [quarantine.NO_AUDIO, quarantine.BAD_ENTRY]


@pytest.mark.parametrize("kind", sorted(corpora.READERS))
def test_a_missing_or_empty_corpus_is_one_clear_error(tmp_path, kind):
    with pytest.raises(UserError, match="does not exist"):
        corpora.read(kind, tmp_path / "nowhere", Defaults())
    empty = tmp_path / "empty"
    if kind == "jsonl":
        empty.write_text("")
    else:
        empty.mkdir()
    with pytest.raises(UserError, match="empty"):
        corpora.read(kind, empty, Defaults())


def test_an_unknown_kind_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError) as error:
        corpora.read("librispeach", tmp_path, Defaults())
    assert "librispeech" in error.value.remedy


def test_text_pieces_end_at_sentences_and_lose_no_word():
    text = "One two three. Four five? Six seven eight nine ten eleven. Twelve"
    assert list(text_corpus.pieces(text, 5)) == [
        "One two three. Four five?",
        "Six seven eight nine ten",
        "eleven. Twelve",
    ]


def test_html_paragraphs_leave_out_code_and_menus(tmp_path):
    (tmp_path / "page.html").write_text(
        "<head><title>The title of this page here</title></head><body>"
        "<div>Menu entries that are in no paragraph</div>"
        "<p>The <em>first</em> paragraph &amp; its\n words.<p>The second one is not closed at all."
        "<pre>code that nobody ever should read aloud</pre></div>"
        "<p>Too short.</p><p>The second one is not closed at all.</p></body>"
    )
    (tmp_path / "b.txt").write_text(
        "A paragraph of plain text.\n\nAnother paragraph of plain text."
    )
    found = text_corpus.read(tmp_path, 50)
    assert [p.text for p in found] == [
        "A paragraph of plain text.",
        "Another paragraph of plain text.",
        "The first paragraph & its words.",
        "The second one is not closed at all.",
    ]
    assert len({p.id for p in found}) == 4


def test_text_corpora_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        text_corpus.read(tmp_path / "nowhere", 50)
    (tmp_path / "short.txt").write_text("Too short")
    with pytest.raises(UserError, match="no paragraph"):
        text_corpus.read(tmp_path, 50)
    (tmp_path / "bad.jsonl").write_text('{"text": "fine and long enough, this one"}\n{"txt": 1}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2"):
        text_corpus.read(tmp_path, 50)
