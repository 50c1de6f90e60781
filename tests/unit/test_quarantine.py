import pytest

from data_pipelines import quarantine
from data_pipelines.quarantine import Rejected


def test_round_trip_and_summary(tmp_path):
    items = [
        Rejected("a", "a.wav", quarantine.SILENT, "loudest 50 ms at -80 dBFS"),
        Rejected("ü", "ü.wav", quarantine.TOO_SHORT),
        Rejected("c", "c.wav", quarantine.SILENT),
    ]
    path = tmp_path / "deep" / quarantine.FILE
    quarantine.write(path, items)
    assert quarantine.read(path) == items
    assert quarantine.summary(items) == {quarantine.SILENT: 2, quarantine.TOO_SHORT: 1}
    assert list(quarantine.summary(items)) == [quarantine.SILENT, quarantine.TOO_SHORT]
    assert [p.name for p in path.parent.iterdir()] == [quarantine.FILE]


def test_no_file_is_an_empty_list(tmp_path):
    assert quarantine.read(tmp_path / "none") == []


def test_an_empty_list_is_a_file(tmp_path):
    quarantine.write(tmp_path / "q", [])
    assert (tmp_path / "q").exists()
    assert quarantine.read(tmp_path / "q") == []


def test_a_write_that_fails_leaves_the_old_list(tmp_path):
    path = tmp_path / "q"
    quarantine.write(path, [Rejected("a", "a.wav", quarantine.SILENT)])
    with pytest.raises(TypeError):
        quarantine.write(path, [Rejected("b", object(), quarantine.SILENT)])
    assert [r.id for r in quarantine.read(path)] == ["a"]
