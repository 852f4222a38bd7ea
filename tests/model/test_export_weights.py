"""Adapters are merged as PEFT does it, shards joined as DeepSpeed does it; what lies in them never runs."""

import importlib.util
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import fresh

from quicksviewer.model.builder import load_pretrained_model, new_model, quantization
from quicksviewer.model.consolidate import write_file
from quicksviewer.model.export_weights import weights_of
from quicksviewer.model.made_weights import load
from quicksviewer.model.zero_join import joined_by_deepspeed
from quicksviewer.model.zero_shards import read_shards
from quicksviewer.utils.manifest import MANIFEST, write_manifest

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra: quant)"
)


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict, wanted: dict) -> None:
    missing = wanted.keys() - found.keys()
    assert missing <= {"lm_head.weight"}, missing  # tied
    assert [name for name, tensor in found.items() if not torch.equal(tensor.float(), wanted[name])] == []


@needs_bitsandbytes
def test_an_adapter_over_quantised_weights_is_merged_into_those_that_are_not(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    from quicksviewer.train.checkpoint import save_extras

    mm = fresh(tiny).model.mm_config.to_dict()
    places = (str(tiny / "qwen2"), str(tiny / "siglip"))
    load4 = dict(dtype=torch.float32, quantization=quantization(4, torch.float32))
    loaded = new_model(*places, mm, "plain", {}, **load4)
    targets = [f"model.layers.{layer}.mlp.up_proj" for layer in range(2)]
    peft = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    peft.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    save_extras(peft, tmp_path)
    found = weights_of(tmp_path)
    plain = load_file(tiny / "qwen2" / "model.safetensors")
    layer = peft.get_base_model().model.layers[1].mlp.up_proj
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    merged = load(found.tensors["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(merged, plain["model.layers.1.mlp.up_proj.weight"] + change.detach())
    assert found.merged == 2
    reference = load_pretrained_model(str(tmp_path), dtype=torch.float32).model
    assert_equal({name: load(t) for name, t in found.tensors.items()}, state_of(reference))


SETTINGS = {
    "rank stabilised": dict(use_rslora=True),
    "several ranks": dict(rank_pattern={"up_proj": 3}, alpha_pattern={"layers.0.*": 5}),
    "biases": dict(bias="lora_only"),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_adapters_of_all_kinds_are_merged_as_by_peft(tiny, tmp_path, settings):
    from peft import LoraConfig, get_peft_model

    from quicksviewer.train.checkpoint import save_extras

    loaded = fresh(tiny)
    names = ("q_proj", "up_proj", "down_proj")
    targets = [n for n, _ in loaded.model.model.named_modules(prefix="model") if n.endswith(names)]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **SETTINGS[settings])
    peft = get_peft_model(loaded.model, config)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if name.endswith("q_proj.base_layer.bias"):
                weight.add_(1.0)  # as if it had been trained
    peft.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    save_extras(peft, tmp_path)
    found = {name: load(tensor) for name, tensor in weights_of(tmp_path).tensors.items()}
    assert_equal(found, state_of(load_pretrained_model(str(tmp_path)).model))
    biases = found["model.layers.0.self_attn.q_proj.bias"]
    assert (biases.abs().min() > 0.5) == (settings == "biases")


# --- shards, made by hand: three ranks, padding, several groups, frozen parameters ---


def write_shards(folder: Path, ranks: int = 3, group: int = 7) -> dict[str, torch.Tensor]:
    """ZeRO-3 shards as DeepSpeed writes them; the weights that they hold."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    torch.manual_seed(0)
    trained = {"a": torch.randn(5, 3), "b": torch.randn(4), "c": torch.randn(2, 2, 2), "d": torch.randn(1)}
    frozen = {"e": torch.randn(7).bfloat16(), "f": torch.randn(3, 2).bfloat16()}

    def share(tensor, rank):
        size = -(-tensor.numel() // ranks)
        padded = torch.cat([tensor.flatten(), tensor.new_zeros(size * ranks - tensor.numel())])
        return padded[rank * size : (rank + 1) * size].clone()

    shards = folder / "global_step1"
    shards.mkdir(parents=True)
    for rank in range(ranks):
        flat = torch.cat([share(tensor, rank) for tensor in trained.values()])
        model = {
            "module": {},
            "buffer_names": [],
            "param_shapes": [{n: trained[n].shape for n in "ab"}, {n: trained[n].shape for n in "cd"}],
            "frozen_param_shapes": {name: tensor.shape for name, tensor in frozen.items()},
            "frozen_param_fragments": {name: share(tensor, rank) for name, tensor in frozen.items()},
            "shared_params": {},
            "ds_version": "0.19.8",
        }
        optimizer = {
            "zero_stage": ZeroStageEnum.weights,
            "partition_count": ranks,
            "fp32_flat_groups": list(flat.split(group)),
        }
        start = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save(model, shards / f"{start}_model_states.pt")
        torch.save({"optimizer_state_dict": optimizer}, shards / f"{start}_optim_states.pt")
    (folder / "latest").write_text("global_step1")
    write_manifest(folder)
    return trained | frozen


def test_shards_are_joined_as_by_deepspeed(tmp_path):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    wanted = write_shards(tmp_path)
    reference = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))
    found = {name: tensor.make() for name, tensor in read_shards(tmp_path).items()}
    assert found.keys() == wanted.keys() == reference.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor) and torch.equal(reference[name], tensor), name


def test_deepspeed_joins_one_tensor_at_a_time_and_opens_shards_alone(tmp_path, monkeypatch):
    from deepspeed.utils import zero_to_fp32

    wanted, alive = write_shards(tmp_path / "[ab]"), []
    gather = zero_to_fp32.GatheredTensor.contiguous

    def watched(tensor):
        assert [made for made in alive if made() is not None] == []
        made = gather(tensor)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(zero_to_fp32.GatheredTensor, "contiguous", watched)
    hidden = tmp_path / "a" / "global_step1"  # what the pattern [ab] would find
    with pytest.raises(FileNotFoundError, match="can't find"):
        joined_by_deepspeed(tmp_path / "[ab]")
    hidden.mkdir(parents=True)
    for path in (tmp_path / "[ab]" / "global_step1").iterdir():
        (hidden / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="none of the shards"):
        joined_by_deepspeed(tmp_path / "[ab]")
    write_file(tmp_path / "joined", joined_by_deepspeed((tmp_path / "[ab]").rename(tmp_path / "b")))
    assert len(alive) == 4 and zero_to_fp32.torch is torch
    found = load_file(tmp_path / "joined")
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_opened_that_no_manifest_lists_and_code_never_runs(tmp_path):
    write_shards(tmp_path / "a")
    shards = tmp_path / "a" / "global_step1"
    trace, hostile = tmp_path / "trace", shards / "zero_pp_rank_3_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": Evil(trace)}, hostile)
    with pytest.raises(ValueError, match="not in the manifest"):
        read_shards(tmp_path / "a")
    hostile.rename(shards / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(ValueError, match="is not what its manifest"):
        read_shards(tmp_path / "a")
    write_manifest(tmp_path / "a")  # even a file that a manifest lists can run no code
    with pytest.raises(ValueError, match="cannot be read"):
        read_shards(tmp_path / "a")
    with pytest.raises(ValueError, match="cannot be read"):
        joined_by_deepspeed(tmp_path / "a")
    (shards / "zero_pp_rank_0_mp_rank_00_optim_states.pt").rename(shards / "a_optim_states.pt")
    write_manifest(tmp_path / "a")
    for reader in (read_shards, joined_by_deepspeed):
        with pytest.raises(ValueError, match="a_optim_states.pt is none of ZeRO-3's shards"):
            reader(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    with pytest.raises(ValueError, match=f"has no {MANIFEST}"):
        read_shards(tmp_path / "a")
    assert not trace.exists()


def test_a_rank_has_one_shard_of_a_kind(tmp_path):
    write_shards(tmp_path)
    for path in (tmp_path / "global_step1").glob("*_optim_states.pt"):
        path.rename(path.with_name(f"bf16_{path.name}"))
    write_manifest(tmp_path)
    assert read_shards(tmp_path).keys() == set("abcdef")
    whole = tmp_path / "global_step1" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    (whole.with_name(whole.name.removeprefix("bf16_"))).write_bytes(whole.read_bytes())
    write_manifest(tmp_path)
    with pytest.raises(ValueError, match="of a rank that has another"):
        read_shards(tmp_path)


def test_shards_of_missing_ranks_are_refused(tmp_path):
    write_shards(tmp_path / "a")
    (tmp_path / "a/global_step1/zero_pp_rank_2_mp_rank_00_model_states.pt").unlink()
    write_manifest(tmp_path / "a")
    with pytest.raises(ValueError, match="to the last"):
        read_shards(tmp_path / "a")
    (tmp_path / "a/global_step1/zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    write_manifest(tmp_path / "a")
    with pytest.raises(ValueError, match="shards of 2 ranks, 3 wrote them"):
        read_shards(tmp_path / "a")


@pytest.mark.parametrize(("key", "value"), [("param_shapes", None), ("param_shapes", [{"a": [5, 4]}])])
def test_shards_that_contradict_themselves_are_refused(tmp_path, key, value):
    write_shards(tmp_path)
    path = tmp_path / "global_step1/zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save(torch.load(path, weights_only=True) | {key: value}, path)
    write_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"not ZeRO-3's|7 numbers of a rank announced"):
        read_shards(tmp_path)
