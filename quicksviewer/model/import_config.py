"""The config of a published checkpoint, and what its weights say of themselves, become our config.

Whatever would make our model another one than the published is refused.
"""

import math
from pathlib import Path

from quicksviewer.model.builder import BACKBONES, read_tower
from quicksviewer.model.config import MultimodalConfig, published
from quicksviewer.model.import_vocabulary import Vocabulary
from quicksviewer.model.published import PUBLISHED_TYPES
from quicksviewer.model.raw_weights import RawTensor
from quicksviewer.utils.registry import load_target, lookup

GRID, FRAMES_PER_CUBE, TAU, ALPHA = 24, 5.0, 0.5, 0.8
"""Constants of the published code."""
MEDIA = {"fps": 1.0, "max_frames": 420, "max_tiles": 4}
"""How the published model is asked. Its largest grid of tiles has four; which tiles it cuts is its own
way."""
TEMPLATES_OF = {"qwen2": "qwen2", "llama": "llama_3_published", "minimind": "qwen2"}
REQUIRED = {
    "mm_resampler_type": ("qformer",),
    "mm_projector_type": ("identity",),
    "mm_cubing": ("momentum",),
    "cubing_vit_forward_n_layers": (-1, None),
    "mm_use_im_start_end": (True, None),
    "mm_use_patch_start_end": (True, None),
    "mm_use_video_start_end": (True, None),
    "mm_use_thumbnail_start_end": (True, None),
}
"""Field of a published config -> values that are understood; None: it may be absent."""
WHY = {
    "mm_projector_type": "the published code does not apply a projector to what it has cut, ours would",
    "cubing_vit_forward_n_layers": "leaving the tower early is not built here",
}
KNOWN_TOWERS = {
    (1152, 14, 729): dict(num_attention_heads=16, intermediate_size=4304, image_size=384),
    (1024, 16, 576): dict(num_attention_heads=16, intermediate_size=4096, image_size=384),
}
"""Width, pixels of a patch and patches of a SigLIP (so400m/14, large/16, at 384 pixels) -> what weights
hide."""
EMBEDDINGS = "vision_tower.vision.embeddings"
PATCHES, PLACES = f"{EMBEDDINGS}.patch_embedding.weight", f"{EMBEDDINGS}.position_embedding.weight"
LAYERS = "vision_tower.vision.encoder.layers."


def backbone_of(theirs: dict) -> str:
    """model_type of the language model. ValueError for a checkpoint that is not published Quicksviewer's."""
    return lookup(PUBLISHED_TYPES, str(theirs.get("model_type")), "model type of a published checkpoint")


def refuse_others(theirs: dict) -> None:
    """ValueError for a published config that asks for something else than the published model."""
    for name, allowed in REQUIRED.items():
        if (value := theirs.get(name)) not in allowed:
            why = f": {WHY[name]}" if name in WHY else ""
            raise ValueError(f"the config has {name} = {value!r}, only {allowed[0]!r} is understood{why}")


def tower_config(tensors: dict[str, RawTensor], folder: Path | None) -> dict:
    """kind and hf of the tower: from a folder with its config, or from the shapes of well-known weights.

    `tensors` by our names. ValueError for a tower that is not known.
    """
    if folder is not None:
        return read_tower(folder)
    if PATCHES not in tensors or PLACES not in tensors:
        return {"kind": "siglip", "hf": {}}  # which is said where missing weights are
    (width, _, patch, _), (places, _) = tensors[PATCHES].shape, tensors[PLACES].shape
    if (width, patch, places) not in KNOWN_TOWERS:
        raise ValueError(
            f"an unknown vision tower, {width} wide, with {places} patches of {patch} pixels: name a folder "
            "that has its config.json with --vision-tower"
        )
    numbers = [int(name.removeprefix(LAYERS).split(".")[0]) for name in tensors if name.startswith(LAYERS)]
    hf = dict(hidden_size=width, patch_size=patch, num_hidden_layers=max(numbers) + 1, vision_use_head=False)
    return {"kind": "siglip", "hf": hf | KNOWN_TOWERS[width, patch, places]}


def mm_config(theirs: dict, tower: dict, vocabulary: Vocabulary) -> MultimodalConfig:
    """Our vision side with the published behaviour."""
    width = theirs["hidden_size"]
    heads = theirs.get("num_heads") or max(width // 128, 1)
    max_size = theirs.get("max_size") or (0, GRID, GRID)
    config = MultimodalConfig.from_dict(
        {
            "tower": {**tower, "grid": int(max_size[1])},
            "cubing": {"frames_per_cube": FRAMES_PER_CUBE, "tau": TAU, "alpha": ALPHA},
            "resampler": {"queries": theirs.get("num_queries") or 64, "head_width": math.ceil(width / heads)},
            "thumbnail": {"enabled": bool(theirs.get("mm_use_thumbnail", True))},
            "layout": {"time_digits": 5, "time_decimals": 1},
            "first_special_id": vocabulary.first_special_id,
            "time_token_ids": vocabulary.time_token_ids,
        }
    )
    return published(config)


def model_config(theirs: dict, mm: MultimodalConfig, vocabulary: Vocabulary):
    """Our config: the language model's fields of theirs, its own vocabulary, and `mm`."""
    config_class = load_target(lookup(BACKBONES, backbone_of(theirs), "language model")[0])
    known = {*config_class().to_dict(), "rope_theta", "rope_scaling", "torch_dtype"}
    dropped = {"model_type", "architectures", "mm", "transformers_version", "_name_or_path", "vocab_size"}
    fields = {key: value for key, value in theirs.items() if key in known - dropped}
    return config_class(**fields, vocab_size=vocabulary.words, mm=mm.to_dict())
