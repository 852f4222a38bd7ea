"""Which models the zoo knows: family -> task -> class, and what else a family needs to be loaded.

Nothing is imported until it is wanted. A checkpoint's family is read from the `model_type` of its
config.json, never from its name. A new family is one row here; a new task one line of its row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from quicksviewer.utils.registry import lookup

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Family:
    """How checkpoints of some model_types are loaded. Classes are written "module:Class"."""

    model_types: tuple[str, ...]
    """What their config.json says. Several rows may not share one."""
    tasks: Mapping[str, str]
    """Task -> class with `from_pretrained`."""
    processor: str = "transformers:AutoProcessor"
    """What prepares words and pictures; has `from_pretrained` too."""
    precise: tuple[str, ...] = ()
    """Ends of module names that 4-bit and 8-bit loading leaves as they are: outputs and small heads."""
    after: str | None = None
    """Called with model and tokenizer once both are loaded."""
    reader: str | None = None
    """Reads model and processor of a folder in the family's own way, in place of `from_pretrained`."""


_SEES_AND_WRITES = ("vqa", "conditional_generation")
_QWEN = "transformers:Qwen2_5_VLForConditionalGeneration"
_MINIMIND = "quicksviewer.minimind:MiniMindVLM"
_ANY_WRITER = "transformers:AutoModelForImageTextToText"

FAMILIES = {
    "blip": Family(
        model_types=("blip",),
        tasks={
            "vqa": "quicksviewer.zoo.blip_writing:BlipForQuestionAnswering",
            "conditional_generation": "quicksviewer.zoo.blip_writing:BlipForConditionalGeneration",
            "image_text_retrieval": "quicksviewer.zoo.blip_retrieval:BlipForImageTextRetrieval",
        },
        after="quicksviewer.zoo.blip_writing:know_tokenizer",
        precise=("predictions.decoder", "itm_head", "vision_proj", "text_proj"),
    ),
    "clip": Family(
        model_types=("clip",),
        tasks={"image_text_retrieval": "transformers:CLIPModel"},
        precise=("visual_projection", "text_projection"),
    ),
    "siglip": Family(
        model_types=("siglip",),
        tasks={"image_text_retrieval": "transformers:SiglipModel"},
        precise=("text_model.head", "vision_model.head"),
    ),
    "qwen2_5_vl": Family(
        model_types=("qwen2_5_vl",),
        tasks=dict.fromkeys(_SEES_AND_WRITES, _QWEN),
        processor="quicksviewer.zoo.qwen2_5_vl:Qwen2_5_VLPictureProcessor",
        precise=("lm_head",),
    ),
    "minimind_vlm": Family(
        model_types=("minimind_vlm",),
        tasks=dict.fromkeys(_SEES_AND_WRITES, _MINIMIND),
        processor="quicksviewer.zoo.minimind:MiniMindVLMProcessor",
        precise=("lm_head", "vision_proj.vision_proj"),  # what it reads is cast to the type of its weight
    ),
    "quicksviewer": Family(
        model_types=("llava_qwen", "llava_llama", "llava_minimind"),
        tasks=dict.fromkeys(_SEES_AND_WRITES, _ANY_WRITER),
        reader="quicksviewer.model.builder:load_pretrained_model",
    ),
    AUTO: Family(
        model_types=(),
        tasks=dict.fromkeys(_SEES_AND_WRITES, _ANY_WRITER)
        | {"image_text_retrieval": "transformers:AutoModelForZeroShotImageClassification"},
    ),
}
"""Family -> how it is loaded. "auto" stands for the family that the config names; of a model_type that no row
names, transformers chooses the class."""

MODEL_REGISTRY = {name: dict(family.tasks) for name, family in FAMILIES.items()}
"""Family -> task -> "module:Class"."""


def family_named(config: Mapping, wanted: str | None = None) -> str:
    """The family of a config.json. ValueError if it is not the wanted one."""
    model_type = config.get("model_type")
    found = next((name for name, row in FAMILIES.items() if model_type in row.model_types), AUTO)
    if wanted not in (None, AUTO, found):
        lookup(FAMILIES, wanted, "model type")
        raise ValueError(
            f"the checkpoint is a {model_type!r}, which belongs to {found!r}, not to {wanted!r}: "
            f"leave model_type out, or say {found!r}"
        )
    return found


def saved_class(config: Mapping) -> str | None:
    """Name of the class that a checkpoint was saved from, as its config says."""
    names = config.get("architectures") or [None]
    return names[0]


def task_saved(config: Mapping, family: str) -> str:
    """The task of the class that a checkpoint was saved from; where several tasks share it, the first."""
    tasks, name = FAMILIES[family].tasks, saved_class(config)
    if len(set(tasks.values())) == 1:
        return next(iter(tasks))
    if found := next((task for task, target in tasks.items() if target.endswith(f":{name}")), None):
        return found
    raise ValueError(f"the checkpoint was saved from {name!r}; choose its task: {', '.join(tasks)}")


def class_for(family: str, task: str) -> str:
    """ "module:Class" of a task, or an error that names the tasks of the family."""
    return lookup(FAMILIES[family].tasks, task, f"task of {family}")
