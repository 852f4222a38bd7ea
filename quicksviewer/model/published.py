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
