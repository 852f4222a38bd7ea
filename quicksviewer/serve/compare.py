"""One video cut in two ways, and what the model answers when it is given the one or the other."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quicksviewer.cubes.measures import boundary_f1, error_ratio
from quicksviewer.cubes.methods import METHODS, Clip, cut_with
from quicksviewer.model.llava_arch import EncodedMedia, Media
from quicksviewer.model.multimodal_cubing import pool_frames
from quicksviewer.model.multimodal_cubing.base import Cuts
from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.session import ChatSession
from quicksviewer.serve.stages import until
from quicksviewer.utils.registry import lookup

FROM_FRAMES = tuple(name for name in METHODS if name != "codec")
"""Ways to cut that look at frames. `codec` reads the file itself, outside of a decoder's child: the page,
whose files come from strangers, has none of it."""


@dataclass(frozen=True)
class Cutting:
    """A video as one method cuts it."""

    name: str
    starts: list[int]
    """First frames of all cubes but the first."""
    error: float
    """Squared distance of frames to the mean of their cube, over the least possible."""
    answer: str | None = None
    note: str = ""
    """Why there is no answer where a question was asked, or that it was ended."""


class GivenCuts(nn.Module):
    """Stands for the cubing of a model: it cuts one video where it was told to."""

    def __init__(self, starts: Sequence[int]):
        super().__init__()
        self.starts = list(starts)

    def forward(self, pooled_ND: Tensor, *_) -> Cuts:
        mask_N = torch.zeros(len(pooled_ND), device=pooled_ND.device)
        mask_N[[0, *self.starts]] = 1
        return Cuts.from_mask(mask_N, [1 + len(self.starts)])


@contextmanager
def cut_by(model, cubing: nn.Module) -> Iterator[None]:
    """Inside, another cubing stands in the place of the model's."""
    own, model.cubing = model.cubing, cubing
    try:
        yield
    finally:
        model.cubing = own


@torch.no_grad()
def compare(
    loaded,
    medium,
    names: Sequence[str],
    question: str = "",
    decoding: Decoding | None = None,
    stop: Callable[[], bool] = lambda: False,
    seconds: float = math.inf,
) -> list[Cutting]:
    """A video of a session cut by each of the named methods; with a question, also the answer to it.

    The tower sees the video once. An answer ends when `stop` says so, which is asked after every token, and
    after so many seconds. ValueError for an unknown method, TooLong where the model has no room.
    """
    for name in names:
        lookup(dict.fromkeys(FROM_FRAMES), name, "way to cut")
    model = loaded.model
    tokens_NPD = model.vision_tower(medium.pixels.to(model.device))
    features = pool_frames(tokens_NPD).cpu()
    config = model.mm_config.cubing
    clip = Clip("", medium.times.cpu(), medium.pixels.cpu(), features, config, model.cubing)
    cuttings = []
    for name in names:
        starts = cut_with(name, clip)
        answer, note = None, ""
        if question and len(starts) + 1 != clip.num_cubes:
            note = f"no answer: {len(starts) + 1} cubes, and the model reads {clip.num_cubes} of this video"
        elif question and stop():
            note = "no answer: stopped"
        elif question:
            encoded = _encode(model, medium, tokens_NPD, None if name == config.kind else starts)
            session = ChatSession(loaded, decoding or Decoding())
            session.adopt("", medium, encoded)
            answer = session.ask(question, stop=until(stop, seconds))
            note = "stopped" if session.times.stopped else ""
        cuttings.append(Cutting(name, starts, error_ratio(features, starts), answer, note))
    return cuttings


def _encode(model, medium, tokens_NPD: Tensor, starts: list[int] | None) -> EncodedMedia:
    """The video as the language model reads it, cut at these frames, or by the model's own cubing."""
    media = Media(tokens_NPD, medium.times.to(model.device), medium.frames, [True])
    if starts is None:
        return model.encode_media(media)
    with cut_by(model, GivenCuts(starts)):
        return model.encode_media(media)


def agreement(one: Cutting, other: Cutting) -> float:
    """F1 of the cuts of one against those of the other, at one frame more or less."""
    return boundary_f1(one.starts, other.starts)
