"""A sealed folder is whole; one that is not says so."""

import json
import os

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


SHA = "0" * 64
FORMS = {
    "a list": {"files": ["a.bin"]},
    "a number": {"files": 5},
    "nothing": {"files": {}},
    "no key": {},
    "no mapping": [],
    "no row": {"files": {"a.bin": {}}},
    "a row of text": {"files": {"a.bin": "5"}},
    "size of text": {"files": {"a.bin": {"size": "5", "sha256": SHA}}},
    "size of truth": {"files": {"a.bin": {"size": True, "sha256": SHA}}},
    "digest of a number": {"files": {"a.bin": {"size": 5, "sha256": 0}}},
    "short digest": {"files": {"a.bin": {"size": 5, "sha256": "00"}}},
    "outside": {"files": {"../a.bin": {"size": 5, "sha256": SHA}}},
    "inside and out": {"files": {"deep/../../a.bin": {"size": 5, "sha256": SHA}}},
    "absolute": {"files": {"/etc/passwd": {"size": 5, "sha256": SHA}}},
    "itself": {"files": {".": {"size": 5, "sha256": SHA}}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_of_another_form_is_refused_by_its_path(folder, form):
    (folder / MANIFEST).write_text(json.dumps(FORMS[form]))
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged"):
        check(folder)


def test_a_manifest_too_deep_to_read_is_refused(folder):
    (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged"):
        check(folder)


STRANGERS = {
    "more.bin is not listed": lambda folder: (folder / "more.bin").write_text("x"),
    "deep/more is not listed": lambda folder: (folder / "deep/more").write_text("x"),
    "link is a link": lambda folder: (folder / "link").symlink_to("/etc/hostname"),
    "dir is a link": lambda folder: (folder / "dir").symlink_to("/etc"),
    "pipe is a link or a device": lambda folder: os.mkfifo(folder / "pipe"),
    "deep/b.bin is a link": lambda folder: (
        (folder / "deep/b.bin").rename(folder.parent / "b.bin")
        and (folder / "deep/b.bin").symlink_to(folder.parent / "b.bin")
    ),
}


@pytest.mark.parametrize("message", STRANGERS)
def test_what_no_manifest_lists_is_found_where_it_is_asked_for(folder, message):
    assert set(check(folder, exact=True)) == {"a.bin", "deep/b.bin"}
    STRANGERS[message](folder)
    check(folder)
    with pytest.raises(ValueError, match=message):
        check(folder, exact=True)
