"""A base and a delta give the target back byte for byte; what does not fit is refused; kills do no harm."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_pairs import contents, tensors, write
from safetensors.torch import load_file, save_file
from tiny_world import BACKBONES, fresh
from transformers import AutoModelForCausalLM

from quicksviewer.model import apply_delta as apply_word
from quicksviewer.model import consolidate as consolidate_word
from quicksviewer.model import delta_command, raw_weights
from quicksviewer.model.delta import FORMS, apply_delta, make_delta, verify_delta
from quicksviewer.model.raw_weights import read_folder
from quicksviewer.utils.manifest import check

# --- pairs of a base and a target ---


def stirred(model):
    """The model with every second tensor changed a little, in place."""
    with torch.no_grad():
        for weight in list(model.parameters())[::2]:
            weight.add_(torch.randn_like(weight) * 1e-3)
    return model


def plain(tiny: Path, backbone: str):
    return AutoModelForCausalLM.from_pretrained(tiny / backbone, dtype=torch.bfloat16)


def video_model(tiny: Path, backbone: str):
    """What training makes of a language model: other weights, and parts that it did not have."""
    return stirred(fresh(tiny, backbone).model.to(torch.bfloat16))


def with_lora_merged(tiny: Path, backbone: str):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(plain(tiny, backbone), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    return model.merge_and_unload()


def resized(by: int):
    def make(tiny: Path, backbone: str):
        model = plain(tiny, backbone)
        model.resize_token_embeddings(model.config.vocab_size + by, mean_resizing=False)
        return stirred(model)

    return make


TARGETS = {"video": video_model, "lora": with_lora_merged, "shrunk": resized(-5), "grown": resized(7)}


def save(model, folder: Path, shard: str = "100GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_base_and_delta_give_the_target_byte_for_byte(tiny, tmp_path, backbone, target):
    base = save(plain(tiny, backbone), tmp_path / "base", shard="40KB")
    wanted = save(TARGETS[target](tiny, backbone), tmp_path / "target", shard="100KB")
    record = make_delta(base, wanted, tmp_path / "delta")
    kinds = {kind for file in record.files.values() for kind in file.kinds.values()}
    assert {"same", "diff"} <= kinds and ("new" in kinds) == (target == "video")
    again = save(plain(tiny, backbone), tmp_path / "again")  # the same base in one file
    verify_delta(again, tmp_path / "delta")
    apply_delta(again, tmp_path / "delta", tmp_path / "made")
    check(tmp_path / "made")
    assert contents(tmp_path / "made") == contents(wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece", [8, 24, 1 << 23])
def test_every_form_and_length_of_pieces_gives_the_target(pair, form, piece, monkeypatch):
    monkeypatch.setattr(raw_weights, "PIECE", piece)
    monkeypatch.setattr("quicksviewer.model.delta.PIECE", piece)
    monkeypatch.setattr(raw_weights.RawTensor.pieces, "__defaults__", (0, None, piece))
    make_delta(pair / "base", pair / "target", pair / "delta", form)
    apply_delta(pair / "base", pair / "delta", pair / "made")
    made, wanted = tensors(pair / "made"), tensors(pair / "target")
    assert made.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert made[name].dtype == weight.dtype
        # a difference in fp16 has 11 bits, the sum is rounded to the 8 of bf16
        torch.testing.assert_close(made[name], weight, rtol=0 if form == "xor" else 2**-7, atol=0)


def test_tensors_that_did_not_change_take_no_room(pair):
    make_delta(pair / "base", pair / "base", pair / "delta")
    assert read_folder_of_delta(pair / "delta") == {}


def read_folder_of_delta(folder: Path) -> dict:
    return {
        name: t
        for path in folder.glob("*.safetensors")
        for name, t in raw_weights.read_file(path).tensors.items()
    }


# --- what is refused ---


def test_another_base_is_refused_by_name_and_digest_and_nothing_is_written(pair):
    make_delta(pair / "base", pair / "target", pair / "delta")
    weights = load_file(pair / "base" / raw_weights.SINGLE)
    weights["c.bias"][0] += 1
    save_file(weights, pair / "base" / raw_weights.SINGLE)
    for use in (lambda: verify_delta(pair / "base", pair / "delta"), lambda: apply(pair)):
        with pytest.raises(ValueError, match=r"not the base 'base' of this delta: c.bias has the digest \w+"):
            use()
    del weights["a.weight"]
    save_file(weights, pair / "base" / raw_weights.SINGLE)
    with pytest.raises(ValueError, match=r"it has no a.weight"):
        apply(pair)
    assert {path.name for path in pair.iterdir()} == {"base", "target", "delta"}


def apply(pair: Path) -> None:
    apply_delta(pair / "base", pair / "delta", pair / "made")


def test_what_exists_is_not_overwritten(pair):
    make_delta(pair / "base", pair / "target", pair / "delta")
    before = contents(pair / "delta")
    with pytest.raises(ValueError, match="exists"):
        make_delta(pair / "base", pair / "target", pair / "delta")
    with pytest.raises(ValueError, match="exists"):
        apply_delta(pair / "base", pair / "delta", pair / "target")
    with pytest.raises(ValueError, match="form of a delta.*xor"):
        make_delta(pair / "base", pair / "target", pair / "other", "xo")
    assert contents(pair / "delta") == before


def header(**rows) -> bytes:
    text = json.dumps(rows).encode()
    return len(text).to_bytes(8, "little") + text


ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "empty": b"",
    "short": b"\1\0",
    "long header": (2**60).to_bytes(8, "little") + b"{}",
    "no JSON": header()[:8] + b"[]",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no data": header(a=ROW),
    "more data": header(a=ROW) + bytes(9),
    "hole": header(a=ROW, b={**ROW, "data_offsets": [16, 24]}) + bytes(24),
    "overlap": header(a=ROW, b={**ROW, "data_offsets": [4, 12]}) + bytes(12),
    "backwards": header(a={**ROW, "data_offsets": [8, 0]}) + bytes(8),
    "negative": header(a={**ROW, "shape": [-2], "data_offsets": [0, -8]}),
    "huge": header(a={**ROW, "shape": [2**62, 4]}) + bytes(8),
    "dtype": header(a={**ROW, "dtype": "PICKLE"}) + bytes(8),
    "row": header(a=[1]) + bytes(8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_name(tmp_path, name):
    path = tmp_path / raw_weights.SINGLE
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=raw_weights.SINGLE):
        read_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {"a": "../../secret.safetensors"}}'])
def test_a_hostile_index_is_refused(tmp_path, text):
    (tmp_path / raw_weights.INDEX).write_text(text)
    with pytest.raises(ValueError, match=raw_weights.INDEX):
        read_folder(tmp_path)


def test_files_that_would_have_to_be_unpickled_are_neither_read_nor_taken_along(pair):
    (pair / "target" / "training_args.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    make_delta(pair / "base", pair / "target", pair / "delta")
    assert not list((pair / "delta").rglob("*.bin"))
    shutil.rmtree(pair / "base")
    (pair / "base").mkdir()
    (pair / "base" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="other formats"):
        apply(pair)


# --- the command line, and consolidate ---


def test_the_words_of_the_command_line(pair, capsys):
    base, delta = ["--base-model-path", str(pair / "base")], ["--delta-path", str(pair / "delta")]
    target, made = (["--target-model-path", str(pair / name)] for name in ("target", "made"))
    assert delta_command.main(["make", *base, *target, *delta]) == 0
    assert "5 tensors (3 diff, 1 new, 1 same), form xor, base base" in capsys.readouterr().out
    assert delta_command.main(["verify", *base, *delta]) == 0
    assert delta_command.main(["apply", *base, *made, *delta]) == 0
    assert apply_word.main([*base, *made, *delta]) == 1
    assert "exists" in capsys.readouterr().err
    assert delta_command.main(["appyl"]) == 2
    assert "Did you mean 'apply'" in capsys.readouterr().err
    assert contents(pair / "made") == contents(pair / "target")


@pytest.mark.parametrize("dtype", consolidate_word.DTYPES)
def test_consolidate_writes_the_same_numbers_in_another_dtype(pair, dtype):
    folders = ["--src", str(pair / "target"), "--dst", str(pair / "out")]
    words = [*folders, "--dtype", dtype, "--max-shard-size", "1e-7"]
    assert consolidate_word.main(words) == 0
    wanted, found = tensors(pair / "target"), tensors(pair / "out")
    kind = consolidate_word.DTYPES[dtype][1]
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight.to(kind) if weight.is_floating_point() else weight)
    assert len(raw_weights.weight_files(pair / "out")) > 2
    assert json.loads((pair / "out" / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")


def test_consolidate_refuses_numbers_that_do_not_fit(tmp_path, capsys):
    write(tmp_path / "base", [{"a": torch.tensor([1.0, 1e30])}])
    assert consolidate_word.main(["--src", str(tmp_path / "base"), "--dst", str(tmp_path / "out")]) == 1
    assert "a has numbers too large for F16; bf16 can hold them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
