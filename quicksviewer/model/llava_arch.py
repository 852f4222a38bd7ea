"""The diagram: every frame is seen, videos are cut into cubes, each cube becomes Q tokens, the tokens enter
the text.

    pixels -> tower -> pool -> cubing -> resampler ----> order -> splice
                  \\----------------------> thumbnail --/

Letters: B rows, T tokens, V media, N frames, C cubes, P patches of a frame, Q tokens per cube, W characters
of a timestamp, D width. Media are concatenated along frames in the order in which they stand in the rows;
their frame counts stay on the host, so that no shape needs a look at device memory.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quicksviewer.constants import MODEL_TOKENS
from quicksviewer.model.config import MultimodalConfig
from quicksviewer.model.layout import Layout
from quicksviewer.model.multimodal_cubing.base import Cuts
from quicksviewer.model.multimodal_cubing.builder import build_cubing
from quicksviewer.model.multimodal_cubing.pool import Thumbnail, pool_frames
from quicksviewer.model.multimodal_encoder.builder import build_tower
from quicksviewer.model.multimodal_projector.builder import build_projector
from quicksviewer.model.multimodal_resampler.builder import build_resampler
from quicksviewer.model.splice import splice, time_characters

PARTS = {
    "vision_tower": ("vision_tower",),
    "cubing": ("cubing", "thumbnail"),
    "resampler": ("vision_resampler",),
    "projector": ("mm_projector",),
    "special_tokens": ("mm_tokens",),
    "llm": ("model", "lm_head"),
}
"""Part of the model -> dotted prefixes of its parameters. Stages, learning rates and reports speak of
parts."""

DUMMY_FRAMES = 2
"""Frames of the stand-in video of a batch without one: the least that passes through every module."""


@dataclass(frozen=True)
class Media:
    """The media of a batch, as the collator and the processor hand them over.

    pixels: uint8 (sum N, 3, S, S); times: float32 (sum N,) seconds; frames, is_video: one entry per medium.
    """

    pixels: Tensor
    times: Tensor
    frames: list[int]
    is_video: list[bool]

    def __post_init__(self):
        if not len(self.pixels) == len(self.times) == sum(self.frames) or len(self.frames) != len(
            self.is_video
        ):
            raise ValueError(
                f"media disagree: {len(self.pixels)} pictures, {len(self.times)} times, "
                f"{self.frames} frames, {len(self.is_video)} kinds"
            )


@dataclass(frozen=True)
class EncodedMedia:
    """What media become for the language model. Can be kept and spliced again, as chat does between turns.

    visual: (M, D) tokens in the order of their slots; times: (sum C, W) character indices of all videos'
    cubes, with `keep`; ballast: a zero that holds the graph of a stand-in video; cuts: of the real media;
    gate_penalty: sum over gate frames of the 2-norm of the gate's logits (of a stand-in: a zero with its
    graph, because under ZeRO-3 the backward pass of every rank must have the same shape).
    """

    visual: Tensor
    times: Tensor
    keep: Tensor
    cuts: Cuts | None
    ballast: Tensor | None = None
    gate_penalty: Tensor | None = None


@contextmanager
def own_draw(name: str):
    """Random numbers that depend on the run's seed and a name alone, not on what was drawn before.

    Loading a language model draws differently under ZeRO-3; fresh modules must not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((torch.initial_seed() + crc32(name.encode())) % 2**63)
        yield


def build_vision(model: nn.Module, config: MultimodalConfig, lm_width: int) -> None:
    """Give a language model its eyes: the parts of PARTS that are not the language model, as attributes."""
    with own_draw("vision_tower"):
        model.vision_tower = build_tower(config.tower)
    with own_draw("cubing"):
        model.cubing = build_cubing(config.cubing, model.vision_tower.hidden_size)
    with own_draw("vision_resampler"):
        model.vision_resampler = build_resampler(config.resampler, model.vision_tower, lm_width)
    with own_draw("mm_projector"):
        model.mm_projector = build_projector(config.projector, model.vision_resampler.out_width, lm_width)
    if config.thumbnail.enabled:
        with own_draw("thumbnail"):
            width, tokens = model.vision_tower.hidden_size, config.tokens_per_cube
            model.thumbnail = Thumbnail(config.thumbnail, width, lm_width, tokens)
    with own_draw("mm_tokens"):
        model.mm_tokens = nn.Embedding(len(MODEL_TOKENS), lm_width)
    model.layout = Layout(config)


class LlavaMetaForCausalLM:
    """Encode, cube, resample, project, splice. Mixed into a causal language model that `build_vision`
    equipped."""

    def encode_media(
        self, media: Media | None, noise_weight: float = 0.0, generator=None
    ) -> EncodedMedia | None:
        """Tokens of all media of a batch; None where there are none and nothing is trained.

        In training a batch without a video gets a black stand-in video whose result is multiplied by zero, so
        that every rank calls every module and every trained parameter has a gradient, whatever its rows hold.
        """
        real = 0 if media is None else len(media.frames)
        if self.training and not (media and any(media.is_video)):
            media = self._with_stand_in(media)
        if media is None:
            return None
        tokens_NPD = self.vision_tower(media.pixels, min_chunks=self._agreed_chunks(len(media.pixels)))
        cuts = self.cubing(pool_frames(tokens_NPD), media.frames, media.is_video, noise_weight, generator)
        cubes_CQD = self._resample(tokens_NPD, cuts, media)
        units_UQD, unit_counts = self._with_thumbnails(cubes_CQD, tokens_NPD, cuts, media)
        starts_C = self._cube_times(cuts, media)
        times, keep = time_characters(starts_C, self.mm_config.layout)
        return self._cut_off_stand_in(units_UQD, unit_counts, times, keep, cuts, media, real)

    def _resample(self, tokens_NPD: Tensor, cuts: Cuts, media: Media) -> Tensor:
        clock_N = (
            media.times
            if self.mm_config.resampler.time_unit == "seconds"
            else _frame_index(media, tokens_NPD)
        )
        cubes_CQD = self.vision_resampler(tokens_NPD, cuts.cube_of_frame, sum(cuts.cubes), clock_N)
        return self.mm_projector(cubes_CQD)

    def _with_thumbnails(self, cubes_CQD, tokens_NPD, cuts, media) -> tuple[Tensor, list[int]]:
        """Cubes and thumbnails in the order of their slots: (U, Q, D), and how many of them each medium
        has."""
        if not self.mm_config.thumbnail.enabled or not any(media.is_video):
            return cubes_CQD, list(cuts.cubes)
        thumbnails_VQD = self.thumbnail(tokens_NPD, cuts.mask, media.frames, media.is_video)
        order, cube, video = [], 0, len(cubes_CQD)
        for count, is_video in zip(cuts.cubes, media.is_video, strict=True):
            order += [video, *range(cube, cube + count)] if is_video else range(cube, cube + count)
            cube, video = cube + count, video + is_video
        units_UQD = torch.cat([cubes_CQD, thumbnails_VQD.to(cubes_CQD.dtype)])
        index_U = torch.tensor(order, device=units_UQD.device)
        return units_UQD[index_U], [n + v for n, v in zip(cuts.cubes, media.is_video, strict=True)]

    def _cube_times(self, cuts: Cuts, media: Media) -> Tensor:
        """Seconds of the first frame of every cube of every video: (sum C of videos,)."""
        timed = [v for count, v in zip(cuts.cubes, media.is_video, strict=True) for _ in range(count)]
        return media.times[cuts.first_frame][torch.tensor(timed, device=media.times.device)]

    def fuse(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None, encoded: EncodedMedia | None):
        """Text and media as one sequence: embeddings (B, T, D) and attention mask (B, T) or None.

        With plain timestamps the mask loses the leading zeros of every time.
        """
        embeds_BTD = self._embed(input_ids_BT)
        if encoded is None:
            return embeds_BTD, attention_mask_BT
        time_slot_BT = input_ids_BT == self.layout.time_id
        embeds_BTD = splice(embeds_BTD, encoded.visual, input_ids_BT == self.layout.visual_id)
        embeds_BTD = splice(embeds_BTD, self._embed_times(encoded.times), time_slot_BT)
        if encoded.ballast is not None:
            embeds_BTD = embeds_BTD + encoded.ballast.to(embeds_BTD.dtype)
        if not self.layout.is_exact:
            mask = torch.ones_like(input_ids_BT) if attention_mask_BT is None else attention_mask_BT
            attention_mask_BT = mask.masked_scatter(time_slot_BT, encoded.keep.reshape(-1).to(mask.dtype))
        return embeds_BTD, attention_mask_BT

    def _embed(self, ids_BT: Tensor) -> Tensor:
        """Embeddings of text, with the project's own tokens from their own small table.

        The table is looked up for every position, so that it has a gradient in batches without media too.
        """
        own_BT = ids_BT - self.mm_config.first_special_id
        is_own_BT = (own_BT >= 0) & (own_BT < len(MODEL_TOKENS))
        text_BTD = self.get_input_embeddings()(ids_BT.masked_fill(is_own_BT, 0))
        own_BTD = self.mm_tokens(own_BT.masked_fill(~is_own_BT, 0)).to(text_BTD.dtype)
        return torch.where(is_own_BT[..., None], own_BTD, text_BTD)

    def _embed_times(self, characters_CW: Tensor) -> Tensor:
        table = torch.tensor(self.mm_config.time_token_ids, device=characters_CW.device)
        return self.get_input_embeddings()(table[characters_CW]).flatten(0, 1)

    def _with_stand_in(self, media: Media | None) -> Media:
        size, device = self.vision_tower.image_size, self.mm_tokens.weight.device
        pixels = torch.zeros(DUMMY_FRAMES, 3, size, size, dtype=torch.uint8, device=device)
        times = torch.arange(DUMMY_FRAMES, dtype=torch.float32, device=device)
        if media is None:
            return Media(pixels, times, [DUMMY_FRAMES], [True])
        return Media(
            torch.cat([media.pixels, pixels]),
            torch.cat([media.times, times]),
            [*media.frames, DUMMY_FRAMES],
            [*media.is_video, True],
        )

    def _cut_off_stand_in(self, units_UQD, unit_counts, times, keep, cuts, media, real) -> EncodedMedia:
        if real == len(media.frames):
            penalty = None if cuts.gate_logits is None else cuts.gate_logits.norm(dim=-1).sum()
            return EncodedMedia(units_UQD.flatten(0, 1), times, keep, cuts, gate_penalty=penalty)
        penalty = None if cuts.gate_logits is None else cuts.gate_logits.sum() * 0.0
        units = units_UQD[: sum(unit_counts[:real])].flatten(0, 1)
        return EncodedMedia(units, times[:0], keep[:0], None, units_UQD.float().sum() * 0.0, penalty)

    def _agreed_chunks(self, frames: int) -> int:
        """How many times each rank calls the tower: under ZeRO-3 a call is collective, so ranks take the
        maximum."""
        chunks = -(-frames // self.mm_config.tower.frames_per_chunk)
        partitioned = any(hasattr(p, "ds_id") for p in self.vision_tower.parameters())
        if not (partitioned and self.training and dist.is_initialized()):
            return chunks
        agreed = torch.tensor(chunks, device=self.mm_tokens.weight.device)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return int(agreed)


def _frame_index(media: Media, like: Tensor) -> Tensor:
    """Index of each frame in its medium: (sum N,), the published clock."""
    index = [i for count in media.frames for i in range(count)]
    return torch.tensor(index, dtype=torch.float32, device=like.device)
