"""Special tokens and fixed ids: the words that text, layout and model agree on.

Two kinds of special strings exist. *Marks* (`<image>`, `<video>`) stand in data and in what users type; they
say "a medium goes here" and never reach the model. *Tokens* are vocabulary entries with an embedding row of
their own; the layout of a medium is made of them (see `quicksviewer/model/layout.py`).
"""

IGNORE_INDEX = -100
"""Label of a position without loss: the value that torch's cross-entropy ignores by default."""

IMAGE_MARK = "<image>"
VIDEO_MARK = "<video>"
MARKS = (IMAGE_MARK, VIDEO_MARK)

VISUAL_TOKEN = "<visual>"
"""One visual token goes here."""
TIME_TOKEN = "<time>"
"""One character of a timestamp goes here."""

IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"
PATCH_START, PATCH_END = "<patch_start>", "<patch_end>"
VIDEO_START, VIDEO_END = "<video_start>", "<video_end>"
THUMBNAIL_START, THUMBNAIL_END = "<thumbnail_start>", "<thumbnail_end>"

MODEL_TOKENS = (
    VISUAL_TOKEN,
    TIME_TOKEN,
    IMAGE_START,
    IMAGE_END,
    PATCH_START,
    PATCH_END,
    VIDEO_START,
    VIDEO_END,
    THUMBNAIL_START,
    THUMBNAIL_END,
)
"""Added to every tokenizer in this order, so that their ids are consecutive; the marks are added after
them."""
