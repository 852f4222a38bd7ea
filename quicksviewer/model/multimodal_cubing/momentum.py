"""The learned cut: a gate looks at the momentum of the frames and opens a cube where the picture changes.

Published as Quicksviewer's cubing network. Letters: V videos, N frames, T gated frames of the longest video
(its N less one), G gated frames of all videos, C cubes, D width. All in float32: in bfloat16 frames tie.

Differences, running mean and patch mean are linear and commute, so frames are pooled first, which leaves 576
times less work. Frame counts are host integers, and nothing reads a value back from the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing.base import Cubing, Cuts, GatedFrames, to_device

NUM_ENERGIES, LOG_SQUARE = 3, 1
"""Numbers that say how strong a change is, and which of them is the logarithm of its mean square."""
ENERGY_FLOOR = 1e-6
"""Added to the mean squared change before its logarithm, so that a still picture has one."""
NEGLIGIBLE = 1e-9
"""Weight of old differences at which the running mean stops."""


class FloatLinear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class FloatLayerNorm(nn.LayerNorm):
    """The same for LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


def momentum(difference_VTD: Tensor, alpha: float) -> Tensor:
    """Running mean of frame differences: m_1 = d_1, m_t = alpha d_t + (1 - alpha) m_{t-1}. (V, T, D).

    A causal sum with taps alpha (1 - alpha)^j, by doubling: after k rounds it spans 2^k frames. It ends where
    what is left is negligible, so the work is linear in T.
    """
    # the first difference stands for all that came before the video: its taps sum to 1
    total = torch.cat([difference_VTD[:, :1], alpha * difference_VTD[:, 1:]], dim=1)
    span, decay = 1, 1 - alpha
    while span < total.shape[1] and decay > NEGLIGIBLE:
        total = total + decay * F.pad(total[:, :-span], (0, 0, span, 0))
        span, decay = 2 * span, decay * decay
    return total


def energies(padded_VND: Tensor) -> Tensor:
    """How strong each change is: log1p of mean |d|, log of mean d^2, cosine distance. (V, N - 1, 3)."""
    before, after = padded_VND[:, :-1], padded_VND[:, 1:]
    change = after - before
    mean_size = change.abs().mean(dim=-1).log1p()
    mean_square = (change.square().mean(dim=-1) + ENERGY_FLOOR).log()
    return torch.stack([mean_size, mean_square, 1 - F.cosine_similarity(before, after, dim=-1)], dim=-1)


def top_k(score_VT: Tensor, k_V: Tensor) -> Tensor:
    """True on the k best of every row, with its own k; among equals the earlier wins. (V, T) bool."""
    order_VT = score_VT.argsort(dim=1, descending=True, stable=True)
    place_T = torch.arange(score_VT.shape[1], device=score_VT.device)
    rank_VT = torch.empty_like(order_VT).scatter_(1, order_VT, place_T.expand_as(order_VT))
    return rank_VT < k_V[:, None]


def repair_lengths(
    cut_VT: Tensor, frames_V: Tensor, cubes_V: Tensor, most: int, limits: tuple[int, int]
) -> Tensor:
    """Move cuts (frame t + 1 where column t is true) until all cubes keep limits (shortest, longest): (V, T).

    Positions are first clamped to what is possible. Then position k becomes the maximum over j of position j
    plus the least way from j to k: (k - j) x shortest forwards, -(j - k) x longest backwards. That is the
    earliest choice at or after the given one that keeps both limits; cuts that keep them stay. `most` is the
    largest number of cubes of a video. Needs shortest x cubes <= frames <= longest x cubes.
    """
    shortest, longest = limits
    num_places = cut_VT.shape[1]
    # cut k opens cube k: cut 0 is before frame 0, and the one after a row's last cube is its end
    index_C = torch.arange(most + 1, device=cut_VT.device)
    places_VT = torch.arange(1, num_places + 1, device=cut_VT.device).where(cut_VT, num_places + 1)
    position_VC = F.pad(places_VT.sort(dim=1).values[:, : most - 1], (1, 1))
    left_VC = cubes_V[:, None] - index_C
    frames_V1 = frames_V[:, None]
    lowest = torch.maximum(index_C * shortest, frames_V1 - left_VC * longest)
    highest = torch.minimum(index_C * longest, frames_V1 - left_VC * shortest)
    # beyond a row's own end the places go on in steps of `shortest`, which binds nothing before them
    position_VC = torch.minimum(torch.maximum(position_VC, lowest), highest)
    position_VC = torch.where(left_VC > 0, position_VC, frames_V1 - left_VC * shortest)
    forwards = (position_VC - index_C * shortest).cummax(dim=1).values + index_C * shortest
    backwards = (position_VC - index_C * longest).flip(1).cummax(dim=1).values.flip(1) + index_C * longest
    position_VC = torch.maximum(forwards, backwards)
    inner = (index_C > 0) & (left_VC > 0)
    column = torch.where(inner, position_VC - 1, num_places)
    return torch.zeros_like(F.pad(cut_VT, (0, 1))).scatter_(1, column, True)[:, :num_places]


class MomentumCubing(Cubing):
    """Gumbel top-K over a gate's logits; straight-through gradient."""

    def __init__(self, config: CubingConfig, vision_width: int):
        super().__init__(config, vision_width)
        width = vision_width
        self.agg_frame_fn = nn.Sequential(FloatLinear(width, width))
        self.proj_fn = nn.Sequential(
            FloatLayerNorm(width), FloatLinear(width, width), nn.GELU(), FloatLinear(width, 2)
        )
        self.energy_fn = FloatLinear(NUM_ENERGIES, width) if config.energy_features else None
        self.energy_slope = nn.Parameter(torch.empty(1)) if config.energy_features else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal weights, no bias."""
        for module in self.modules():
            if isinstance(module, FloatLinear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, FloatLayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if self.energy_slope is not None:
            nn.init.constant_(self.energy_slope, self.config.energy_prior)

    def forward(
        self,
        pooled_ND: Tensor,
        frames: list[int],
        is_video: list[bool],
        noise_weight: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Cuts:
        """See `Cubing.forward`. `gate_logits` are those without noise."""
        cubes = self.cubes_of(frames, is_video)
        mask_N = torch.ones(sum(frames), device=pooled_ND.device)
        gated = GatedFrames.of(frames, is_video, pooled_ND.device)
        if gated is None:
            return Cuts.from_mask(mask_N, cubes)
        with torch.autocast(pooled_ND.device.type, enabled=False):
            logits_G2 = self.gate(gated.pad(pooled_ND.float()), gated)
            noisy_G2 = logits_G2
            if noise_weight > 0:
                noise = torch.empty_like(logits_G2).exponential_(generator=generator)
                noisy_G2 = logits_G2 - noise_weight * noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
            odds_G = (noisy_G2[:, 1] - noisy_G2[:, 0]) / self.config.tau
            cuts = [k for k, n, v in zip(cubes, frames, is_video, strict=True) if v and n > 1]
            hard_G = self.choose(odds_G.detach(), gated, cuts).float()
            soft_G = odds_G.sigmoid()
            mask_N = mask_N.index_put((gated.frame_G,), (hard_G - soft_G).detach() + soft_G)
        return Cuts.from_mask(mask_N, cubes, logits_G2)

    def gate(self, padded_VND: Tensor, gated: GatedFrames) -> Tensor:
        """Logits of (stay, cut) of the gated frames: (G, 2).

        With energies: a function of direction and strength, plus a straight line in the strength alone.
        """
        chosen = (gated.video_G, gated.place_G)
        momentum_GD = momentum(padded_VND.diff(dim=1), self.config.alpha)[chosen]
        norm, into, activation, out_of = self.proj_fn
        hidden_GD = norm(self.agg_frame_fn(momentum_GD))
        if self.energy_fn is None:
            return out_of(activation(into(hidden_GD)))
        energy_G3 = energies(padded_VND)[chosen]
        logits_G2 = out_of(activation(into(hidden_GD + self.energy_fn(energy_G3))))
        line_G = self.energy_slope.float() / 2 * gated.centre(energy_G3[:, LOG_SQUARE])
        return logits_G2 + torch.stack([-line_G, line_G], dim=1)

    def choose(self, odds_G: Tensor, gated: GatedFrames, cubes: list[int]) -> Tensor:
        """Which gated frames open a cube, when each video has `cubes` of them: (G,) bool.

        Log odds sort like probabilities, but do not tie where those round to 1.
        """
        odds_VT = odds_G.new_full((len(cubes), gated.longest), -torch.inf)
        odds_VT = odds_VT.index_put((gated.video_G, gated.place_G), odds_G)
        cubes_V = to_device(cubes, odds_G.device)
        cut_VT = top_k(odds_VT, cubes_V - 1)
        shortest, longest = self.config.min_cube_frames, self.config.max_cube_frames
        if shortest > 1 or longest is not None:
            limits = (shortest, longest or gated.longest + 1)
            cut_VT = repair_lengths(cut_VT, gated.lengths_V, cubes_V, max(cubes), limits)
        return cut_VT[gated.video_G, gated.place_G]
