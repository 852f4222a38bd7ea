"""The diagram: every frame is seen, videos are cut into cubes, each cube becomes Q tokens, the tokens enter
the text.

    pixels -> tower -> pool -> cubing -> resampler ----> order -> splice
                  \\----------------------> thumbnail --/

Letters: B rows, T tokens, V media, N frames, C cubes, P patches of a frame, Q tokens per cube, W characters
of a timestamp, D width. Media are concatenated along frames in the order in which they stand in the rows;
their frame counts stay on the host, so that no shape needs a look at device memory.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quicksviewer.constants import MODEL_TOKENS
from quicksviewer.model.config import MultimodalConfig
from quicksviewer.model.layout import Layout
from quicksviewer.model.multimodal_cubing.base import Cuts, broken_frames, refuse_broken, to_device
from quicksviewer.model.multimodal_cubing.builder import build_cubing
from quicksviewer.model.multimodal_cubing.pool import Thumbnail, pool_frames
from quicksviewer.model.multimodal_cubing.router import smooth_cubes
from quicksviewer.model.multimodal_encoder.builder import build_tower
from quicksviewer.model.multimodal_projector.builder import build_projector
from quicksviewer.model.multimodal_resampler.builder import build_resampler
from quicksviewer.model.splice import splice, time_characters
from quicksviewer.model.team import Part, Team, deal_cubes, deal_units, even_counts, own_slice

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

    pixels: uint8 (sum N, 3, S, S), or what a frozen tower made of them (sum N, P, D); times: float32
    (sum N,) seconds; frames, is_video: one entry per medium.
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

    visual: (M, D) tokens in the order of their slots, in a team those of this process; counts: how many each
    process of the team has; times: (sum C, W) character indices of all videos'
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
    counts: list[int] | None = None


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

    team: Team = Team()
    """The processes that share a batch with this one: by default none."""

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
        held = even_counts(len(media.pixels), self.team.size)
        tokens_NPD = self._see(media.pixels[own_slice(held, self.team.rank)])
        pooled_ND = self.team.gather(pool_frames(tokens_NPD), held)
        cuts = self.cubing(pooled_ND, media.frames, media.is_video, noise_weight, generator)
        if self.training:
            cuts = replace(cuts, broken=broken_frames(pooled_ND))
        else:
            refuse_broken(pooled_ND, media.frames, media.is_video)
        parts = self._deal(cuts, held)
        cubes_CQD = self._resample(tokens_NPD, cuts, media, parts[self.team.rank])
        units = [cubes_CQD, *self._thumbnails(tokens_NPD, cuts, media, held)]
        starts_C = self._cube_times(cuts, media)
        times, keep = time_characters(starts_C, self.mm_config.layout)
        return self._in_order(torch.cat(units), parts, times, keep, cuts, media, real)

    def _see(self, pixels_N3SS: Tensor) -> Tensor:
        """Patch tokens of this process's frames: (N, P, D).

        Without any it looks at a black one, because every process calls every module.
        """
        frames = len(pixels_N3SS)
        if pixels_N3SS.ndim == 3:  # tokens already, out of a store of features
            return pixels_N3SS
        if not frames:
            pixels_N3SS = pixels_N3SS.new_zeros(1, *pixels_N3SS.shape[1:])
        return self.vision_tower(pixels_N3SS, min_chunks=self._agreed_chunks(len(pixels_N3SS)))[:frames]

    def _deal(self, cuts: Cuts, held: list[int]) -> list[Part]:
        """Which process resamples which cubes. A team reads the cuts from the device to know; one process
        does not."""
        if self.team.size > 1:
            return deal_cubes(cuts.first_frame.tolist(), sum(held), held)
        return [Part(slice(0, sum(held)), slice(0, sum(cuts.cubes)), held, held)]

    def _resample(self, tokens_NPD: Tensor, cuts: Cuts, media: Media, part: Part) -> Tensor:
        """Tokens of this process's cubes, as wide as the language model: (C, Q, D)."""
        by_seconds = self.mm_config.resampler.time_unit == "seconds"
        clock_N = media.times if by_seconds else _frame_index(media, tokens_NPD)
        tokens_NPD = self.team.exchange(tokens_NPD, part.send, part.receive)
        clock_N, cube_N = clock_N[part.frames], cuts.cube_of_frame[part.frames] - part.cubes.start
        if not part.num_cubes:  # every process calls every module
            tokens_NPD = torch.cat([tokens_NPD, tokens_NPD.new_zeros(1, *tokens_NPD.shape[1:])])
            clock_N, cube_N = clock_N.new_zeros(1), cube_N.new_zeros(1)
        if self.team.size > 1 and (cuts.share is not None or cuts.confidence is not None):
            raise ValueError(
                f"cubing {self.mm_config.cubing.kind!r} mixes neighbouring cubes, which lie on different "
                "processes of sequence parallelism; use momentum or uniform, or no sequence parallelism"
            )
        cubes_CQD = self.vision_resampler(tokens_NPD, cube_N, max(part.num_cubes, 1), clock_N, cuts.share)
        if cuts.confidence is not None:
            cubes_CQD = smooth_cubes(cubes_CQD, cuts.confidence)
        return self.mm_projector(cubes_CQD)[: part.num_cubes]

    def _thumbnails(self, tokens_NPD: Tensor, cuts: Cuts, media: Media, held: list[int]) -> list[Tensor]:
        """The thumbnails of all videos, on every process: [(V, Q, D)], or nothing without any.

        A thumbnail is a mean over frames that several processes have seen. Each adds up its own, and the sum,
        already pooled and divided, passes through the module as a video of one frame, which changes nothing.
        """
        if not self.mm_config.thumbnail.enabled or not any(media.is_video):
            return []
        if self.team.size == 1:
            return [self.thumbnail(tokens_NPD, cuts.mask, media.frames, media.is_video)]
        own = own_slice(held, self.team.rank)
        pooled_NQD = self.thumbnail.thumbnail_fn[0](tokens_NPD).float() * cuts.mask[own, None, None]
        medium_N = to_device([m for m, n in enumerate(media.frames) for _ in range(n)], pooled_NQD.device)[
            own
        ]
        sum_MQD = pooled_NQD.new_zeros(len(media.frames), *pooled_NQD.shape[1:])
        sum_MQD = self.team.total(sum_MQD.index_add(0, medium_N, pooled_NQD))
        mean_MQD = sum_MQD / to_device(cuts.cubes, sum_MQD.device)[:, None, None]
        count = len(media.frames)
        ones_M = mean_MQD.new_ones(count)
        return [self.thumbnail(mean_MQD, ones_M, [1] * count, media.is_video)]

    def _cube_times(self, cuts: Cuts, media: Media) -> Tensor:
        """Seconds of the first frame of every cube of every video: (sum C of videos,)."""
        timed = [v for count, v in zip(cuts.cubes, media.is_video, strict=True) for _ in range(count)]
        return media.times[cuts.first_frame][torch.tensor(timed, device=media.times.device)]

    def fuse(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None, encoded: EncodedMedia | None):
        """Text and media as one sequence: embeddings (B, T, D) and attention mask (B, T) or None.

        With plain timestamps the mask loses the leading zeros of every time.
        """
        if encoded is None:
            return self._embed(input_ids_BT), attention_mask_BT
        ids_BT, attention_mask_BT = self.write_times(input_ids_BT, attention_mask_BT, encoded)
        return self.embed_with(ids_BT, encoded.visual, encoded.ballast), attention_mask_BT

    def write_times(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None, encoded: EncodedMedia):
        """Ids with the characters of times in their slots, and the mask without superfluous zeros."""
        slot_BT = input_ids_BT == self.layout.time_id
        table = torch.tensor(self.mm_config.time_token_ids, device=input_ids_BT.device)
        ids_BT = input_ids_BT.masked_scatter(slot_BT, table[encoded.times].flatten())
        if not self.layout.is_exact:
            mask = torch.ones_like(input_ids_BT) if attention_mask_BT is None else attention_mask_BT
            attention_mask_BT = mask.masked_scatter(slot_BT, encoded.keep.reshape(-1).to(mask.dtype))
        return ids_BT, attention_mask_BT

    def embed_with(self, ids_BT: Tensor, visual_MD: Tensor, ballast: Tensor | None) -> Tensor:
        """Embeddings of ids with visual tokens in their slots: (B, T, D)."""
        embeds_BTD = splice(self._embed(ids_BT), visual_MD, ids_BT == self.layout.visual_id)
        return embeds_BTD if ballast is None else embeds_BTD + ballast.to(embeds_BTD.dtype)

    def _embed(self, ids_BT: Tensor) -> Tensor:
        """Embeddings of text, with the project's own tokens from their own small table.

        The table is looked up for every position, so that it has a gradient in batches without media too.
        """
        own_BT = ids_BT - self.mm_config.first_special_id
        is_own_BT = (own_BT >= 0) & (own_BT < len(MODEL_TOKENS))
        text_BTD = self.get_input_embeddings()(ids_BT.masked_fill(is_own_BT, 0))
        own_BTD = self.mm_tokens(own_BT.masked_fill(~is_own_BT, 0)).to(text_BTD.dtype)
        return torch.where(is_own_BT[..., None], own_BTD, text_BTD)

    def _with_stand_in(self, media: Media | None) -> Media:
        size, device = self.vision_tower.image_size, self.mm_tokens.weight.device
        pixels = torch.zeros(DUMMY_FRAMES, 3, size, size, dtype=torch.uint8, device=device)
        times = torch.arange(DUMMY_FRAMES, dtype=torch.float32, device=device)
        if media is None:
            return Media(pixels, times, [DUMMY_FRAMES], [True])
        if media.pixels.ndim == 3:
            pixels = self.vision_tower(pixels)
        return Media(
            torch.cat([media.pixels, pixels]),
            torch.cat([media.times, times]),
            [*media.frames, DUMMY_FRAMES],
            [*media.is_video, True],
        )

    def _in_order(self, units_UQD, parts, times, keep, cuts, media, real) -> EncodedMedia:
        """The units of this process in the order of their slots; those of a stand-in become ballast."""
        has_thumbnail = [video and self.mm_config.thumbnail.enabled for video in media.is_video]
        dealt = deal_units(parts, cuts.cubes[:real], has_thumbnail[:real])
        part, all_cubes = parts[self.team.rank], sum(cuts.cubes)
        own = [
            u - part.cubes.start if u < all_cubes else u - all_cubes + part.num_cubes
            for u in dealt[self.team.rank]
        ]
        visual_MD = units_UQD[to_device(own, units_UQD.device)].flatten(0, 1)
        counts = [len(units) * units_UQD.shape[1] for units in dealt]
        logits = cuts.gate_logits
        if real == len(media.frames):
            return EncodedMedia(visual_MD, times, keep, cuts, None, cuts.penalty(), counts)
        penalty = None if logits is None else logits.sum() * 0.0
        ballast = units_UQD.float().sum() * 0.0
        return EncodedMedia(visual_MD, times[:0], keep[:0], None, ballast, penalty, counts)

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
