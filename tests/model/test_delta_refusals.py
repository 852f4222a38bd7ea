"""Deltas that are damaged, that bring more than they may, that cannot hold what they should."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_pairs import contents, tensors, write

from quicksviewer.model.delta import FORMS, apply_delta, make_delta, read_delta, verify_delta
from quicksviewer.utils.manifest import MANIFEST, sha256_of, write_manifest


def apply(pair: Path) -> None:
    apply_delta(pair / "base", pair / "delta", pair / "made")


def test_a_damaged_delta_is_refused(pair):
    make_delta(pair / "base", pair / "target", pair / "delta")
    for path in [p for p in (pair / "delta").rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        for damaged in (whole[:-3], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"manifest.json|delta"):
                read_delta(pair / "delta")
        path.unlink()
        with pytest.raises(ValueError, match=r"manifest.json|delta"):
            read_delta(pair / "delta")
        path.write_bytes(whole)
    verify_delta(pair / "base", pair / "delta")


def edit_record(change):
    def damage(folder: Path) -> None:
        record = json.loads((folder / "delta.json").read_text())
        change(record, next(iter(record["files"].values())))
        (folder / "delta.json").write_text(json.dumps(record))

    return damage


LIES = {
    "version": (edit_record(lambda r, f: r.update(version=1)), "version 1"),
    "form": (edit_record(lambda r, f: r.update(form="pickle")), "form"),
    "path": (edit_record(lambda r, f: r["files"].update({"../x.safetensors": f})), "no file beside it"),
    "kind": (edit_record(lambda r, f: f["kinds"].update({"b.weight": "diff"})), "parts of b.weight"),
    "kinds": (edit_record(lambda r, f: f["kinds"].pop("b.weight")), "different tensors"),
    "base": (edit_record(lambda r, f: f["kinds"].update({"a.weight": "same"})), "came out with the digest"),
    "key": (edit_record(lambda r, f: r.update(trust_remote_code=True)), "trust_remote_code"),
    "head": (edit_record(lambda r, f: f.update(head="00")), "header"),
    "no hex": (edit_record(lambda r, f: f.update(head="model")), "hexadecimal"),
    "pickle": (edit_record(lambda r, f: r["files"].update({"x.bin": f})), "ends with .safetensors"),
    "unlisted": (edit_record(lambda r, f: r["files"].update({"x.safetensors": f})), "does not list"),
    "deep": (lambda delta: (delta / "delta.json").write_text("[" * 100_000), "nested too deeply"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_delta_that_contradicts_itself_is_refused(pair, lie):
    make_delta(pair / "base", pair / "target", pair / "delta")
    damage, message = LIES[lie]
    damage(pair / "delta")
    write_manifest(pair / "delta")
    with pytest.raises(ValueError, match=message):
        apply(pair)
    assert not (pair / "made").exists() and not (pair / "x.safetensors").exists()


def listed(name: str):
    """A change of a delta folder that its manifest vouches for."""

    def damage(delta: Path) -> None:
        (delta / name).parent.mkdir(parents=True, exist_ok=True)
        (delta / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        write_manifest(delta)

    return damage


def unlisted(name: str):
    return lambda delta: (delta / name).write_bytes(b"x")


def link(delta: Path) -> None:
    (delta / "files" / "notes.txt").symlink_to("/etc/hostname")
    write_manifest(delta)


def manifest(value):
    return lambda delta: (delta / MANIFEST).write_text(json.dumps(value))


UNWANTED = {
    "weights, not listed": (unlisted("files/model.safetensors"), "files/model.safetensors is not listed"),
    "settings, not listed": (unlisted("files/more.json"), "files/more.json is not listed"),
    "not listed": (unlisted("more.txt"), "more.txt is not listed"),
    "link": (link, "files/notes.txt is a link"),
    "weights": (listed("files/model.safetensors"), "files/model.safetensors has no place"),
    "manifest": (listed("files/Manifest.json"), None),
    "beside": (listed("more.json"), "more.json has no place"),
    "deeper": (listed("files/a/more.json"), "files/a/more.json has no place"),
    **{
        end: (listed(f"files/modeling{end}"), f"files/modeling{end} has no place")
        for end in (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".BIN", ".py", ".pyc", ".so")
    },
    "rows as a list": (manifest({"files": ["delta.json"]}), f"{MANIFEST} is damaged"),
    "empty row": (manifest({"files": {"delta.json": {}}}), f"{MANIFEST} is damaged"),
    "a number": (manifest({"files": 5}), f"{MANIFEST} is damaged"),
    "nothing": (manifest({"files": {}}), f"{MANIFEST} is damaged"),
}


@pytest.mark.parametrize("name", UNWANTED)
def test_a_delta_brings_nothing_but_weights_and_settings(pair, name):
    make_delta(pair / "base", pair / "target", pair / "delta")
    damage, message = UNWANTED[name]
    damage(pair / "delta")
    if message is None:
        apply(pair)
        return
    for use in (lambda: verify_delta(pair / "base", pair / "delta"), lambda: apply(pair)):
        with pytest.raises(ValueError, match=message):
            use()
    assert {path.name for path in pair.iterdir()} == {"base", "target", "delta"}


# --- differences of numbers ---

F16, F32, F64 = torch.float16, torch.float32, torch.float64
TOO_LARGE = {
    "beyond fp16": ("fp16", F32, 1e5, 2e5),
    "of one sign each": ("fp32", F32, -3e38, 3e38),
    "doubles": ("fp32", F64, 1.0, 1e300),
    "from infinity": ("fp32", F32, float("inf"), 1.0),
    "the same dtype": ("fp16", F16, -65504.0, 65504.0),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_difference_that_a_form_cannot_hold_is_refused_by_name(tmp_path, name):
    form, dtype, before, after = TOO_LARGE[name]
    for folder, value in (("base", before), ("target", after)):
        write(tmp_path / folder, [{"a.weight": torch.tensor([1.0, value], dtype=dtype)}])
    with pytest.raises(ValueError, match=rf"model.safetensors: a.weight, in the form {form}: .*xor"):
        make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta", form)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "target"}
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "made")
    assert contents(tmp_path / "made") == contents(tmp_path / "target")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("form", FORMS)
def test_infinities_of_the_target_come_back(tmp_path, form, value):
    write(tmp_path / "base", [{"a": torch.tensor([1.0, 2.0])}])
    write(tmp_path / "target", [{"a": torch.tensor([1.5, value])}])
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta", form)
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "made")
    wanted = torch.tensor([1.5, value])
    torch.testing.assert_close(tensors(tmp_path / "made")["a"], wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_made_has_the_digest_that_was_noted(pair, form):
    record = make_delta(pair / "base", pair / "target", pair / "delta", form)
    path = next(iter((pair / "delta").glob("model-00001*")))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 0x40  # a large bit of a difference
    path.write_bytes(raw)
    write_manifest(pair / "delta")
    for use in (lambda: verify_delta(pair / "base", pair / "delta"), lambda: apply(pair)):
        with pytest.raises(ValueError, match=f"{path.name} came out with the digest"):
            use()
    raw[-1] ^= 0x40
    path.write_bytes(raw)
    write_manifest(pair / "delta")
    apply(pair)
    assert {n: sha256_of(pair / "made" / n) for n in record.files} == {
        name: file.sha256 for name, file in record.files.items()
    }
