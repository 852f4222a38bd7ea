"""The tokenizer and the image processor that a pipeline's YAML names. No code of theirs is run."""

import os
from typing import Any

from quicksviewer.data.pipeline.config import ImageProcessorConfig, TokenizerConfig
from quicksviewer.utils.places import may_be_on_hub, missing
from quicksviewer.utils.registry import load_target

TOKENIZERS = {"auto": "transformers:AutoTokenizer", "bert": "transformers:BertTokenizer"}
"""tokenizer > type -> class that reads the folder."""
IMAGE_PROCESSORS = {
    "auto": "transformers:AutoImageProcessor",
    "blip": "transformers:BlipImageProcessorPil",
    "clip": "transformers:CLIPImageProcessorPil",
}
"""image_processor > type -> class that reads the folder, or is made without one."""


def load_tokenizer(config: TokenizerConfig) -> Any:
    """ValueError where there is none, or one that cannot fill up a batch."""
    if config.name is None:
        raise ValueError(
            "tokenizer > name is not given: the folder of a tokenizer or of a model's checkpoint"
        )
    near = {"local_files_only": config.local_files_only}
    tokenizer = _read(TOKENIZERS[config.type], config.name, "tokenizer > name", near)
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer of {config.name} has no padding token")
    return tokenizer


def load_image_processor(config: ImageProcessorConfig, tokenizer_name: str | None) -> Any:
    """ValueError where there is none."""
    name = config.name or (tokenizer_name if config.type == "auto" else None)
    target, key = IMAGE_PROCESSORS[config.type], "image_processor > name"
    near = {"local_files_only": config.local_files_only}
    if name is None:
        if config.type == "auto":
            raise ValueError(f"{key} is not given: the folder of an image processor, or a type and a size")
        return load_target(target)(**_sizes(load_target(target)(), config.size))
    found = _read(target, name, key, near)
    return found if config.size is None else _read(target, name, key, near | _sizes(found, config.size))


def _sizes(processor: Any, size: int | None) -> dict[str, dict[str, int]]:
    """The settings with which a processor makes squares of this size."""
    if size is None:
        return {}
    square = {"height": size, "width": size}
    cuts = "shortest_edge" in processor.to_dict().get("size", {})
    return {"size": {"shortest_edge": size}, "crop_size": square} if cuts else {"size": square}


def _read(target: str, name: str, key: str, options: dict[str, Any]) -> Any:
    """What a class reads from a folder, or from the hub where the options let it."""
    is_local = os.path.exists(name)
    if not (is_local or may_be_on_hub(name)):
        raise ValueError(f"{key}: {name!r} cannot be read: {missing('folder', name)}")
    try:
        return load_target(target).from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        if not is_local and options["local_files_only"]:
            reason = f"{missing('folder', name)}. As a model of the hub it is not in transformers' cache"
            reason += ", and with local_files_only nothing is downloaded"
        elif not is_local:
            reason = f"{missing('folder', name)}. From the hub: {reason}"
        raise ValueError(f"{key}: {name!r} cannot be read: {reason}") from error
