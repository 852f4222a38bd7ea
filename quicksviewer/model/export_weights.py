"""The whole weights of a checkpoint, wherever they lie: in its own files, in a base and an adapter, in the
shards of ZeRO-3. Nothing is loaded before it is written, and then one tensor at a time."""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quicksviewer.model.builder import ADAPTER_FILE, ADAPTER_WEIGHTS, OTHER_FILE, OURS, is_ours
from quicksviewer.model.made_weights import MadeTensor, load
from quicksviewer.model.raw_weights import INDEX, SINGLE, RawTensor, read_file, read_folder
from quicksviewer.model.zero_shards import has_shards, read_shards
from quicksviewer.utils.registry import load_target, lookup

WRAPPED = "base_model.model."
"""Before every name of a model that PEFT has wrapped."""
ADAPTER = re.compile(r"^(?P<layer>.+)\.(?P<part>lora_[A-Za-z_]+)(?:\.default)?(?P<leaf>(?:\.weight)?)$")
OLD_TOWER, TOWER = "vision_tower.vision.vision_model.", "vision_tower.vision."
"""transformers has written the tower under both names."""
MAY_BE_TIED = "lm_head.weight"
"""Left out where it is the embedding's; some writers store it twice."""
NOT_MERGED = (
    *("lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices"),
    *("layer_replication", "megatron_config", "alora_invocation_tokens"),
)
"""Settings of PEFT with which an adapter is more than a change of single weights."""
Tensors = dict[str, RawTensor | MadeTensor]


@dataclass(frozen=True)
class Weights:
    """`tensors` by the names of our model; `merged`: adapted layers; `base`: folder they were merged into."""

    tensors: Tensors
    merged: int = 0
    base: Path | None = None
    from_shards: bool = False


def is_adapter(checkpoint: Path) -> bool:
    return (checkpoint / ADAPTER_FILE).is_file()


def needs_shards(checkpoint: Path) -> bool:
    """Whether the weights lie nowhere but in ZeRO-3's shards."""
    plain = (OTHER_FILE,) if is_adapter(checkpoint) else (SINGLE, INDEX)
    return has_shards(checkpoint) and not any((checkpoint / name).is_file() for name in plain)


def weights_of(checkpoint: Path, base: Path | None = None, masters: bool = False) -> Weights:
    """All weights of a checkpoint. ValueError for what is missing, too much, of another shape, or unreadable.

    `base`: where an adapter's language model lies, if not where it lay in training. `masters`: from the
    float32 copies of ZeRO-3, though there are weight files.
    """
    from_shards = masters or needs_shards(checkpoint)
    if from_shards and not has_shards(checkpoint):
        raise ValueError(f"{checkpoint} has no ZeRO-3 shards, whose float32 copies were asked for")
    own = read_shards(checkpoint) if from_shards else None
    if not is_adapter(checkpoint):
        return _fitting(checkpoint, Weights(own or read_folder(checkpoint), from_shards=from_shards))
    settings = json.loads((checkpoint / ADAPTER_FILE).read_text())
    base = base or Path(settings["base_model_name_or_path"])
    if not base.is_dir():
        raise ValueError(f"{base}, the base of {checkpoint}, is not there; name its folder with --model-base")
    if own is None:
        own = read_file(checkpoint / ADAPTER_WEIGHTS).tensors | read_file(checkpoint / OTHER_FILE).tensors
    elif (checkpoint / OTHER_FILE).is_file():
        own = read_file(checkpoint / OTHER_FILE).tensors | own  # what is frozen is in no shard
    adapters, plain = _sorted_out(own)
    ground = weights_of(base).tensors if is_ours(base) else read_folder(base)
    whole = {_canonical(name): tensor for name, tensor in ground.items()} | plain
    for layer in adapters:
        if f"{layer}.weight" not in whole:
            raise ValueError(f"{checkpoint} adapts {layer}, which {base} does not have")
    merged = {
        f"{layer}.weight": _merged(checkpoint, layer, whole[f"{layer}.weight"], parts)
        for layer, parts in adapters.items()
    }
    return _fitting(checkpoint, Weights(whole | merged, len(merged), base, from_shards))


def _canonical(name: str) -> str:
    name = name.removeprefix(WRAPPED).replace(".base_layer.", ".")
    return TOWER + name.removeprefix(OLD_TOWER) if name.startswith(OLD_TOWER) else name


def _sorted_out(tensors: Tensors) -> tuple[dict[str, Tensors], Tensors]:
    """Adapters (layer -> PEFT's name -> tensor), and weights that take the place of the base's."""
    adapters, plain = {}, {}
    for name, tensor in tensors.items():
        if match := ADAPTER.match(name.removeprefix(WRAPPED)):
            layer = _canonical(match["layer"])
            key = f"{WRAPPED}{layer}.{match['part']}{match['leaf']}"
            adapters.setdefault(layer, {})[key] = tensor
        else:
            plain[_canonical(name)] = tensor
    return adapters, plain


def _merged(checkpoint: Path, layer: str, weight: RawTensor | MadeTensor, parts: Tensors) -> MadeTensor:
    def make() -> Tensor:
        return merge(checkpoint, layer, load(weight).float(), {key: load(t) for key, t in parts.items()})

    return MadeTensor(checkpoint / ADAPTER_WEIGHTS, "F32", weight.shape, make)


def merge(checkpoint: Path, layer: str, weight_OI: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """The weight of an adapted linear layer: (O, I) float32. PEFT computes it, on a model of this one layer,
    so that whatever the adapter's settings mean, they mean the same here. ValueError for what cannot be
    merged."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = LoraConfig.from_pretrained(checkpoint)
    if more := [name for name in NOT_MERGED if getattr(config, name, None)]:
        raise ValueError(f"{checkpoint / ADAPTER_FILE} sets {', '.join(more)}: such an adapter is not merged")
    config.target_modules, config.exclude_modules, config.inference_mode = [layer], None, True
    config.base_model_name_or_path = None
    with torch.device("meta"):
        linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of patterns for other layers than this one
        peft = get_peft_model(_at(layer, linear), config)
    parts = {key: part.float() for key, part in parts.items()}
    if get_peft_model_state_dict(peft).keys() != parts.keys():
        raise ValueError(
            f"{checkpoint}: the adapter of {layer} has {sorted(parts)}, its settings say otherwise"
        )
    set_peft_model_state_dict(peft, parts)
    return peft.merge_and_unload().get_submodule(layer).weight.data


def _at(name: str, module: nn.Module) -> nn.Module:
    """A module that has another one under a dotted name."""
    for part in reversed(name.split(".")):
        outer = nn.Module()
        outer.add_module(part, module)
        module = outer
    return module


def expected_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """The weights that a model of a checkpoint's config has, without those that are tied to others."""
    model_type = json.loads((checkpoint / "config.json").read_text()).get("model_type")
    config_class, model_class = (load_target(name) for name in lookup(OURS, model_type, "model type"))
    with torch.device("meta"):
        model = model_class(config_class.from_pretrained(checkpoint, local_files_only=True))
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}


def fit(source: Path, tensors: Tensors, expected: dict[str, tuple[int, ...]]) -> Tensors:
    """The tensors of a model, in its order. ValueError that lists what is missing, unknown or of another
    shape; tied weights may be there or not."""
    faults = [f"missing: {name}" for name in expected if name not in tensors]
    faults += [f"unknown: {name}" for name in tensors if name not in expected and name != MAY_BE_TIED]
    faults += [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        raise ValueError(f"{source}: {len(faults)} weights do not fit the model:\n  " + "\n  ".join(faults))
    return {name: tensors[name] for name in expected}


def _fitting(checkpoint: Path, found: Weights) -> Weights:
    tensors = {_canonical(name): tensor for name, tensor in found.tensors.items()}
    tensors = fit(checkpoint, tensors, expected_shapes(checkpoint))
    return Weights(tensors, found.merged, found.base, found.from_shards)
