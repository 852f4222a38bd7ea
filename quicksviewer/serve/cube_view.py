"""A video as the model sees it, as HTML: figures, times of the stages, and every frame in its cube.

Everything is drawn by markup and inline pictures: no script, no request. Text is escaped.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

from quicksviewer.serve.compare import Cutting, agreement
from quicksviewer.serve.stages import STAGES, Times, in_words

SIDE, QUALITY = 88, 72
"""Pixels of a side of a frame's picture, and how well it is kept."""
COLOURS = 6
"""Colours that cubes take in turn; the style sheet has them as --qv-cube-0 and so on."""
NOTHING = (
    '<div class="qv-empty"><b>Drop a video above.</b> Every frame is looked at once; frames that tell the '
    "same thing become one cube; each cube becomes a fixed number of tokens.</div>"
)


@dataclass(frozen=True)
class SeenVideo:
    """What of a video is shown."""

    times: list[float]
    """Seconds of its frames."""
    spans: list[tuple[int, int]]
    """First and one past the last frame of each cube."""
    seconds: float
    """Length of the video."""
    tokens: int
    """That the language model reads of it, with times and brackets."""
    tokens_per_cube: int
    patches: int
    """Tokens of the tower for one frame."""
    has_thumbnail: bool

    def ends(self) -> list[float]:
        """Seconds at which the cubes end: where the next begins, the last with the video."""
        starts = [self.times[start] for start, _ in self.spans]
        return [*starts[1:], max(self.seconds, self.times[-1])]


def figures(video: SeenVideo, times: Times) -> str:
    """Cards with counts, and a bar for each stage that has taken place."""
    less = len(video.times) * video.patches / video.tokens
    rate = video.tokens / video.seconds if video.seconds else float(video.tokens)
    cards = [
        ("frames", str(len(video.times)), f"of {_clock(video.seconds)} of video"),
        ("cubes", str(len(video.spans)), f"{len(video.times) / len(video.spans):.1f} frames each"),
        ("tokens", f"{video.tokens:,}", f"{less:.0f} times fewer than patches"),
        ("tokens / second", f"{rate:.1f}", "of video"),
    ]
    made = "".join(
        f'<div class="qv-card"><span>{name}</span><b>{value}</b><i>{note}</i></div>'
        for name, value, note in cards
    )
    return f'<div class="qv-figures">{made}</div>{stage_bars(times)}'


def stage_bars(times: Times) -> str:
    """Seconds of each stage, as bars against the longest."""
    told = [(name, times.stages[name]) for name in STAGES if name in times.stages]
    longest = max((seconds for _, seconds in told), default=0) or 1
    rows = "".join(
        f"<li><span>{name}</span><div><i style='width:{max(1.0, 100 * seconds / longest):.1f}%'></i></div>"
        f"<b>{in_words(seconds)}</b></li>"
        for name, seconds in told
    )
    return f'<ul class="qv-stages">{rows}</ul>'


def strip(pixels_N3SS: Tensor, video: SeenVideo) -> str:
    """A line of time, a line of tokens, and all frames in their cubes."""
    pictures = frame_pictures(pixels_N3SS)
    cubes = "".join(_cube(place, video, pictures) for place in range(len(video.spans)))
    mark = '<span class="qv-key"><i class="qv-mark"></i>opens its cube'
    key = f"{mark} and is part of the thumbnail</span>" if video.has_thumbnail else f"{mark}</span>"
    return (
        f'<section class="qv-strip"><header><h3>How the model sees it</h3>{key}</header>'
        f"{_time_line(video)}{_token_line(video)}<p class='qv-read'>{_reading(video)}</p>"
        f"<div class='qv-cubes'>{cubes}</div></section>"
    )


def _time_line(video: SeenVideo) -> str:
    """Each cube as wide as it is long."""
    starts = [video.times[start] for start, _ in video.spans]
    blocks = "".join(
        f'<i style="flex:{max(end - start, 1e-3):.4f} 0 0;{_colour(place)}" title="cube {place + 1}: '
        f'{start:.1f} to {end:.1f} s"></i>'
        for place, (start, end) in enumerate(zip(starts, video.ends(), strict=True))
    )
    return f'<div class="qv-line"><span>time</span><div class="qv-blocks">{blocks}</div></div>'


def _token_line(video: SeenVideo) -> str:
    """What the language model reads: each cube has as many tokens as any other."""
    thumbnail = '<i class="qv-thumbnail" title="thumbnail: mean of the frames that open a cube"></i>'
    blocks = "".join(
        f'<i style="flex:1 0 0;{_colour(place)}" title="cube {place + 1}: {video.tokens_per_cube} tokens">'
        "</i>"
        for place in range(len(video.spans))
    )
    first = thumbnail if video.has_thumbnail else ""
    return f'<div class="qv-line"><span>tokens</span><div class="qv-blocks">{first}{blocks}</div></div>'


def _reading(video: SeenVideo) -> str:
    """What the language model reads, in words."""
    cubes = f"for each of {len(video.spans)} cubes its time and {video.tokens_per_cube} tokens"
    first = f"a thumbnail of {video.tokens_per_cube}, then " if video.has_thumbnail else ""
    return f"The language model reads {video.tokens:,} tokens: {first}{cubes}."


def _cube(place: int, video: SeenVideo, pictures: Sequence[str]) -> str:
    start, stop = video.spans[place]
    frames = "".join(
        f'<span class="qv-frame{" qv-open" if index == start else ""}"><img alt="frame {index + 1} at '
        f'{video.times[index]:.1f} s" src="{pictures[index]}"></span>'
        for index in range(start, stop)
    )
    count = f"{stop - start} frame{'s' if stop - start > 1 else ''}"
    return (
        f'<figure class="qv-cube" style="{_colour(place)}" data-first-frame="{start}"><figcaption>'
        f"<b>{place + 1}</b> {_clock(video.times[start])} <em>{count}</em></figcaption>"
        f"<div>{frames}</div></figure>"
    )


def comparison(pixels_N3SS: Tensor, times: Sequence[float], cuttings: Sequence[Cutting]) -> str:
    """The cuts of several methods over the same frames, their measures and their answers."""
    pictures = frame_pictures(pixels_N3SS)
    head = "".join(f'<img alt="" src="{picture}">' for picture in pictures)
    rows = "".join(_bar(cutting, len(pictures), times) for cutting in cuttings)
    same = f"{100 * agreement(*cuttings[:2]):.0f}%" if len(cuttings) > 1 else ""
    facts = "".join(_facts(cutting, same) for cutting in cuttings)
    return (
        f'<section class="qv-compare"><div class="qv-film" style="--qv-count:{len(pictures)}">'
        f'<div class="qv-row qv-heads">{head}</div>{rows}</div><div class="qv-facts">{facts}</div></section>'
    )


def _bar(cutting: Cutting, count: int, times: Sequence[float]) -> str:
    edges = [0, *cutting.starts, count]
    blocks = "".join(
        f'<i style="flex:{edges[k + 1] - edges[k]} 0 0;{_colour(k)}" title="cube {k + 1} from '
        f'{times[edges[k]]:.1f} s"></i>'
        for k in range(len(edges) - 1)
    )
    return f'<div class="qv-method">{escape(cutting.name)}</div><div class="qv-row qv-blocks">{blocks}</div>'


def _facts(cutting: Cutting, same: str) -> str:
    told = [
        (f"{len(cutting.starts) + 1}", "cubes"),
        (f"{cutting.error:.2f}", "error over the least possible"),
        (same, "of cuts agree within a frame"),
    ]
    rows = "".join(f"<li><b>{value}</b> {note}</li>" for value, note in told if value)
    answer = "" if cutting.answer is None else f"<blockquote>{escape(cutting.answer)}</blockquote>"
    answer += f"<p>{escape(cutting.note)}</p>" if cutting.note else ""
    return f'<div class="qv-card"><span>{escape(cutting.name)}</span><ul>{rows}</ul>{answer}</div>'


def notice(text: str) -> str:
    """Something that a visitor must be told."""
    return f'<div class="qv-notice" role="alert">{escape(text)}</div>'


def frame_pictures(pixels_N3SS: Tensor) -> list[str]:
    """Small JPEG pictures of frames, as data URLs."""
    frames = pixels_N3SS.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
    return [_data_url(Image.fromarray(frame)) for frame in frames]


def _data_url(picture: Image.Image) -> str:
    grows = picture.width < SIDE
    how = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    buffer = io.BytesIO()
    picture.resize((SIDE, SIDE), how).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _colour(place: int) -> str:
    return f"--c:var(--qv-cube-{place % COLOURS})"


def _clock(seconds: float) -> str:
    """ "7.5 s", or "12:05" from a minute on."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
