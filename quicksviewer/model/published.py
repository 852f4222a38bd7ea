"""Names of the published checkpoints and what they are called here."""

RENAMED_PREFIXES = (
    ("cubing.thumbnail_fn.", "thumbnail.thumbnail_fn."),
    ("cubing.", "cubing."),
    ("resampler.", "vision_resampler."),
    ("vision_resampler.", "vision_resampler."),
)
"""Published prefix, our prefix; the first that fits counts. Modules keep their names below it."""


def rename_published(name: str) -> str:
    """Our name of a published weight of cubing, thumbnail or resampler; any other name is returned as it is.

    A leading "model." is kept, so that names of whole checkpoints and of their inner model both work.
    """
    head = "model." if name.startswith("model.") else ""
    rest = name.removeprefix(head)
    for theirs, ours in RENAMED_PREFIXES:
        if rest.startswith(theirs):
            return head + ours + rest.removeprefix(theirs)
    return name


# --- whole checkpoints ---

PUBLISHED_TYPES = {
    "quicksviewer_qwen": "qwen2",
    "quicksviewer_llama": "llama",
    "quicksviewer_minimind": "minimind",
}
"""model_type of a published checkpoint -> that of its language model. The third was never published; its name
follows the rule."""
PUBLISHED_TOKENS = (
    *("<patch_start>", "<patch_end>", "<video_start>", "<video_end>"),
    *("<im_start>", "<im_end>", "<thumbnail_start>", "<thumbnail_end>"),
)
"""Added to the vocabulary by the published code, in this order, with rows of the language model's tables."""
PUBLISHED_TOWER = "model.vision_tower.vision_tower."
WHOLE_PREFIXES = (
    (f"{PUBLISHED_TOWER}vision_model.", "vision_tower.vision."),
    (PUBLISHED_TOWER, "vision_tower.vision."),
    ("model.cubing.thumbnail_fn.", "thumbnail.thumbnail_fn."),
    ("model.cubing.", "cubing."),
    ("model.vision_resampler.", "vision_resampler."),
    ("model.resampler.", "vision_resampler."),
    ("model.mm_projector.", "mm_projector."),
)
"""As RENAMED_PREFIXES, of names as they stand in a checkpoint's files; others, of the language model,
stay."""
UNUSED = ("vision_tower.vision.head.", "vision_tower.vision.post_layernorm.")
"""Weights (by our prefixes) that published checkpoints hold and the published code does not use."""


def our_name(name: str) -> str | None:
    """Our name of a tensor of a published checkpoint; None for one that nothing uses."""
    for theirs, ours in WHOLE_PREFIXES:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    return None if name.startswith(UNUSED) else name
