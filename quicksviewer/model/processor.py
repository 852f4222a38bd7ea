"""Words and media become the model's inputs; the same class serves training, evaluation and chat.

It owns everything that must agree between them: tokenizer, chat template, frame plan, picture size and token
layout.
It is saved with every checkpoint.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from quicksviewer.constants import IGNORE_INDEX, IMAGE_MARK, MARKS, MODEL_TOKENS, VIDEO_MARK
from quicksviewer.conversation import TEMPLATES, Turn, encode, render, stop_ids, with_end_of_text
from quicksviewer.model.config import TIME_CHARACTERS, MultimodalConfig
from quicksviewer.model.layout import Layout
from quicksviewer.utils.batching import batch_rows, join_media
from quicksviewer.utils.data_util import (
    VIDEO_READERS,
    FramePlan,
    MediaLimits,
    VideoInfo,
    in_chunks,
    open_video,
    plan_frames,
    plan_given,
)
from quicksviewer.utils.image import as_rgb
from quicksviewer.utils.media import Isolation
from quicksviewer.utils.mm_utils import image_tiles, resize_frames, tile_grid
from quicksviewer.utils.registry import lookup
from quicksviewer.utils.video import SAMPLED


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """How media are read. Part of the checkpoint, so that chat sees what training saw."""

    fps: float = 1.0
    """Frames per second that are looked at."""
    max_frames: int = 420
    """More than that are thinned out evenly."""
    max_tiles: int = 0
    """Tiles of a high-resolution image beside the whole picture; 0: none."""
    decoder: str = "av"
    """What opens videos: av, decord or torchcodec. The frames are the same."""
    isolation: Isolation = "process"
    """Where media are decoded: in a child that is killed when it hangs, crashes or eats memory, or here."""
    decode_seconds: float = 300
    """How long a decoder in a child may work on one medium, all its calls together."""
    decode_memory_mib: int = 4096
    """What a decoder in a child may hold, beside the frames that it returns."""

    def __post_init__(self):
        lookup(VIDEO_READERS, self.decoder, "video decoder")
        self.limits()
        if self.fps <= 0 or self.max_frames < 1 or self.max_tiles < 0:
            raise ValueError(
                f"bad fps={self.fps}, max_frames={self.max_frames} or max_tiles={self.max_tiles}"
            )

    def limits(self) -> MediaLimits:
        """How media are opened. ValueError where a setting makes no sense."""
        bounds = {"decode_seconds": self.decode_seconds, "decode_memory": self.decode_memory_mib * 2**20}
        return MediaLimits(isolation=self.isolation, **bounds)


@dataclass(frozen=True)
class Medium:
    """One decoded video or image. pixels: uint8 (N, 3, S, S); times: float32 (N,) seconds.

    `key`: its name in a store of features. `tokens`: those of the vision tower (N, P, D), where the store has
    them; there are no pixels then.
    """

    mark: str
    pixels: Tensor
    times: Tensor
    key: str | None = None
    tokens: Tensor | None = None
    plan: FramePlan | None = None
    """Of a video: what was looked at, and who decoded it."""

    @property
    def is_video(self) -> bool:
        return self.mark == VIDEO_MARK

    @property
    def frames(self) -> list[int]:
        """A video is one medium of N frames; an image of N pictures is N media of one frame."""
        return [len(self.times)] if self.is_video else [1] * len(self.times)


def add_special_tokens(tokenizer) -> int:
    """Give a tokenizer the project's tokens and marks; the id of the first. Does nothing where it has
    them."""
    known = tokenizer.get_vocab()
    if missing := [token for token in (*MODEL_TOKENS, *MARKS) if token not in known]:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": missing}, replace_extra_special_tokens=False
        )
    ids = tokenizer.convert_tokens_to_ids(list(MODEL_TOKENS))
    if ids != list(range(ids[0], ids[0] + len(MODEL_TOKENS))):
        raise ValueError(f"the tokenizer holds some of the special tokens already, not in one run: ids {ids}")
    return ids[0]


def time_token_ids(tokenizer) -> list[int]:
    """Ids of the characters that timestamps are written with."""
    ids = tokenizer.convert_tokens_to_ids(list(TIME_CHARACTERS))
    strangers = [
        c for c, i in zip(TIME_CHARACTERS, ids, strict=True) if i is None or i == tokenizer.unk_token_id
    ]
    if strangers:
        raise ValueError(
            f"the tokenizer has no token of its own for {strangers}; timestamps cannot be written"
        )
    return ids


class QuicksviewerProcessor(ProcessorMixin):
    """Tokenizer, template, media settings and layout under one roof, with transformers' conventions."""

    def __init__(
        self, tokenizer=None, mm: dict | None = None, template: str = "qwen2", media: dict | None = None, **kw
    ):
        super().__init__(tokenizer)
        self.mm, self.template, self.media = mm, template, asdict(MediaConfig(**(media or {})))
        self.mm_config = MultimodalConfig.from_dict(mm)
        self.media_config = MediaConfig(**self.media)
        self.layout = Layout(self.mm_config)
        self.conversation = lookup(TEMPLATES, template, "conversation template")

    def to_dict(self):
        return {key: getattr(self, key) for key in ("mm", "template", "media")} | {
            "processor_class": type(self).__name__
        }

    def with_media(self, **changes) -> "QuicksviewerProcessor":
        """The same processor with other media settings."""
        return type(self)(self.tokenizer, self.mm, self.template, {**self.media, **changes})

    @property
    def stop_ids(self) -> list[int]:
        return stop_ids(self.conversation, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Padding is masked everywhere, so any id will do where the tokenizer names none."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    @property
    def size(self) -> int:
        return self.mm_config.tower.image_size

    def load_image(self, source) -> Medium:
        """An image from a path, bytes or a PIL image: the whole picture and its tiles."""
        image = as_rgb(source, self.media_config.limits())
        pictures = image_tiles(image, self.size, self.media_config.max_tiles)
        pixels = torch.cat([resize_frames(np.asarray(picture)[None], self.size) for picture in pictures])
        return Medium(IMAGE_MARK, pixels, torch.zeros(len(pictures)))

    def load_video(
        self,
        path,
        start: float | None = None,
        end: float | None = None,
        times=None,
        max_frames: int | None = None,
        plan: FramePlan | None = None,
    ) -> Medium:
        """Frames of a video file between start and end (seconds), sampled by this processor's frame plan.

        `times`: seconds to choose from in place of the plan's grid, thinned out evenly to `max_frames` (if
        not given, that of the media settings). `plan`: one that was made before, in place of all these; its
        decoder is used again, unless it was a store of frames.
        """
        is_again = plan is not None and plan.decoder not in SAMPLED
        decoder = plan.decoder if is_again else self.media_config.decoder
        with open_video(path, decoder, self.media_config.limits()) as reader:
            info = reader.probe()
            plan = plan or self._plan(info, start, end, times, max_frames or self.media_config.max_frames)
            pixels = torch.cat([resize_frames(frames, self.size) for frames in in_chunks(reader, plan.times)])
        return Medium(VIDEO_MARK, pixels, torch.tensor(plan.times, dtype=torch.float32), plan=plan)

    def _plan(self, info: VideoInfo, start, end, times, max_frames: int = sys.maxsize) -> FramePlan:
        if times is not None:
            return plan_given(info, times, max_frames, start, end)
        return plan_frames(info, self.media_config.fps, max_frames, start, end)

    def load(self, mark: str, source, start=None, end=None, times=None, max_frames=None) -> Medium:
        if mark == VIDEO_MARK:
            return self.load_video(source, start, end, times, max_frames)
        return self.load_image(source)

    def as_seen(self, mark: str, key: str, tokens_NPD: Tensor, times_N: Tensor) -> Medium:
        """A medium of which the tower's tokens are known, in place of one that is decoded."""
        no_pixels = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return Medium(mark, no_pixels, times_N, key, tokens_NPD)

    # What will be loaded, without decoding it

    def count_frames(self, info: VideoInfo, start=None, end=None, times=None) -> int:
        """Frames that `load_video` takes of a video when nothing bounds their number."""
        return len(self._plan(info, start, end, times).times)

    def count_pictures(self, width: int, height: int) -> int:
        """Pictures that `load_image` makes of an image: the whole and its tiles."""
        rows, cols = tile_grid(width, height, self.size, self.media_config.max_tiles)
        return 1 + rows * cols

    def text_length(self, turns: Sequence[Turn]) -> int:
        """Tokens of a conversation but for those of its media."""
        ids, _ = encode(self.tokenizer, render(self.conversation, list(turns)))
        marks = set(self.tokenizer.convert_tokens_to_ids(list(MARKS)))
        return sum(token not in marks for token in ids)

    def medium_length(self, mark: str, pictures: int) -> int:
        """Tokens of a medium of so many frames (a video) or pictures (an image)."""
        ids = self.layout.video_ids if mark == VIDEO_MARK else self.layout.image_ids
        return len(ids(pictures))

    def encode_turns(
        self, turns: Sequence[Turn], media: Sequence[Medium] = (), generation: bool = False
    ) -> dict:
        """One conversation as a row: input_ids, labels, and its media. Labels cover what the assistant
        says."""
        ids, learn = encode(self.tokenizer, render(self.conversation, list(turns), generation))
        return self._expand(ids, learn, media) | _media_row(media)

    def _expand(self, ids: list[int], learn: list[bool], media: Sequence[Medium]) -> dict:
        """Put each medium's layout in place of its mark."""
        marks = {self.tokenizer.convert_tokens_to_ids(mark): mark for mark in MARKS}
        found = [marks[i] for i in ids if i in marks]
        given = [medium.mark for medium in media]
        if found != given:
            raise ValueError(f"the text has the marks {found}, but the media are {given}")
        out_ids, labels, rest = [], [], iter(media)
        for token, learned in zip(ids, learn, strict=True):
            piece = self._medium_ids(next(rest)) if token in marks else [token]
            out_ids += piece
            labels += piece if learned and token not in marks else [IGNORE_INDEX] * len(piece)
        return {"input_ids": out_ids, "labels": labels}

    def _medium_ids(self, medium: Medium) -> list[int]:
        if medium.is_video:
            return self.layout.video_ids(len(medium.times))
        return self.layout.image_ids(len(medium.times))

    def batch(self, rows: list[dict]) -> BatchFeature:
        """Rows of `encode_turns` for generation: padded on the left, without labels."""
        rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        return BatchFeature(batch_rows(rows, self.pad_id, "left") | join_media(rows))

    def __call__(self, text=None, images=None, videos=None, **kwargs) -> BatchFeature:
        """transformers' convention: rendered text (or a list) with marks, and all images and videos in order.

        Images and videos may be paths; images may be PIL images. Returns a padded batch.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            raise ValueError("give at least one text; media are named in it by <image> and <video>")
        pools = {IMAGE_MARK: iter(_as_list(images)), VIDEO_MARK: iter(_as_list(videos))}
        rows = [self._row_of_text(one, pools) for one in texts]
        for mark, pool in pools.items():
            if rest := len(list(pool)):
                raise ValueError(f"{rest} more media than {mark} marks in the text")
        return self.batch(rows)

    def _row_of_text(self, text: str, pools: dict) -> dict:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        marks = {self.tokenizer.convert_tokens_to_ids(mark): mark for mark in MARKS}
        media = []
        for mark in (marks[i] for i in ids if i in marks):
            if (source := next(pools[mark], None)) is None:
                raise ValueError(f"more {mark} marks in the text than media given")
            media.append(self.load(mark, source))
        row = self._expand(ids, [False] * len(ids), media)
        return row | _media_row(media)

    def apply_chat_template(
        self,
        conversation,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        continue_final_message: bool = False,
        **kwargs,
    ):
        """transformers' messages (content: text, or a list of text, image and video entries) as text or as a
        batch; a list of conversations as a list of texts or as one batch."""
        if continue_final_message:
            raise ValueError("an answer cannot be continued; let the conversation end with a user turn")
        if not conversation:
            raise ValueError("there is no conversation")
        is_list = not isinstance(conversation[0], dict)
        read = [_read_messages(messages) for messages in (conversation if is_list else [conversation])]
        if tokenize:
            rows = [
                self.encode_turns(turns, [self.load(*source) for source in sources], add_generation_prompt)
                for turns, sources in read
            ]
            return self.batch(rows)
        texts = [self._write(turns, add_generation_prompt) for turns, _ in read]
        return texts if is_list else texts[0]

    def _write(self, turns: list[Turn], add_generation_prompt: bool) -> str:
        spans = render(self.conversation, turns, add_generation_prompt)
        return "".join(span.text for span in with_end_of_text(self.tokenizer, spans))

    @property
    def model_input_names(self):
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "frame_times",
            "medium_frames",
            "medium_is_video",
        ]


def _media_row(media: Sequence[Medium]) -> dict:
    if not media:
        return {}
    row = {
        "pixel_values": torch.cat([medium.pixels for medium in media]),
        "frame_times": torch.cat([medium.times for medium in media]),
        "medium_frames": [count for medium in media for count in medium.frames],
        "medium_is_video": [medium.is_video for medium in media for _ in medium.frames],
    }
    if media[0].key is not None:
        row["stored_media"] = [(m.key, len(m.times), m.tokens is not None) for m in media]
    if tokens := [medium.tokens for medium in media if medium.tokens is not None]:
        row["tower_tokens"] = torch.cat(tokens)
    return row


def _as_list(value) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _read_messages(messages) -> tuple[list[Turn], list]:
    """Messages as turns with marks, and their media in order as (mark, source)."""
    turns, sources = [], []
    for message in messages:
        text, found = _flatten(message["content"])
        turns.append(Turn(message["role"], text))
        sources += found
    return turns, sources


def _flatten(content) -> tuple[str, list]:
    """A message's content as text with marks, and its media in order."""
    if isinstance(content, str):
        return content, []
    text, media = [], []
    for entry in content:
        kind = entry.get("type")
        if kind == "text":
            text.append(entry["text"])
            continue
        mark = lookup({"image": IMAGE_MARK, "video": VIDEO_MARK}, kind, "content type")
        source = next((entry[key] for key in (kind, "path") if entry.get(key) is not None), None)
        if source is None:
            raise ValueError(f"a content entry of type {kind} must give its file under 'path'")
        text.append(mark)
        media.append((mark, source))
    return "".join(text), media
