"""A sealed folder is whole; one that is not says so."""

import json

import pytest

from quicksviewer.utils.manifest import MANIFEST, check, seal, sha256_of, write_manifest


@pytest.fixture
def folder(tmp_path):
    aside = tmp_path / "aside"
    (aside / "deep").mkdir(parents=True)
    (aside / "a.bin").write_bytes(b"first")
    (aside / "deep/b.bin").write_bytes(b"second" * 1000)
    seal(aside, tmp_path / "final")
    return tmp_path / "final"


def test_a_sealed_folder_passes_and_lists_every_file(folder):
    check(folder)
    rows = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(rows) == {"a.bin", "deep/b.bin"}
    assert rows["a.bin"] == {"size": 5, "sha256": sha256_of(folder / "a.bin")}
    assert not (folder.parent / "aside").exists()


DAMAGE = {
    "is missing": lambda folder: (folder / "deep/b.bin").unlink(),
    "has 3 bytes, expected 5": lambda folder: (folder / "a.bin").write_bytes(b"cut"),
    "the bytes of a.bin have changed": lambda folder: (folder / "a.bin").write_bytes(b"FIRST"),
    "has no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "is damaged": lambda folder: (folder / MANIFEST).write_text('{"files": '),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named(folder, message):
    DAMAGE[message](folder)
    with pytest.raises(ValueError, match=message):
        check(folder)


def test_sealing_over_an_older_folder_replaces_it(folder):
    aside = folder.parent / "aside"
    aside.mkdir()
    (aside / "c.bin").write_bytes(b"third")
    seal(aside, folder)
    check(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["c.bin", MANIFEST]
    assert [p.name for p in folder.parent.iterdir()] == ["final"]


def test_files_may_be_chosen(tmp_path):
    (tmp_path / "kept").write_text("1")
    (tmp_path / "other").write_text("2")
    write_manifest(tmp_path, [tmp_path / "kept"])
    assert set(json.loads((tmp_path / MANIFEST).read_text())["files"]) == {"kept"}
