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
from quicksviewer.model.multimodal_cubing.base import Cubing, Cuts, Draw, GatedFrames, straight_through

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


class MomentumCubing(Cubing):
    """Gumbel top-K over a gate's logits; straight-through gradient, through the thumbnail alone."""

    reads_shares = False
    """Whether training also takes gradients from what cubes say, by shares of frames in neighbours."""

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

    def cut(self, pooled_ND, gated: GatedFrames, cubes, cuts, noise_weight: float, generator) -> Cuts:
        """See `Cubing.cut`. `gate_logits` are those without noise."""
        frames = len(pooled_ND)
        logits_G2 = self.gate(gated.pad(pooled_ND), gated)
        draw = self.draw(logits_G2, gated, cuts, noise_weight, generator)
        mask_N = gated.mask(self.weights(draw), frames)
        share_N3 = self.shares(draw, gated, mask_N) if self.training and self.reads_shares else None
        opens_N = gated.mask(draw.hard_G, frames)
        return Cuts.from_mask(mask_N, cubes, logits_G2, share_N3, opens_N=opens_N)

    def draw(self, logits_G2, gated: GatedFrames, cuts: list[int], noise_weight: float, generator) -> Draw:
        """Cuts of each video, as many as `cuts` says: those with the best noisy log odds."""
        noisy_G2 = logits_G2
        if noise_weight > 0:
            noise = torch.empty_like(logits_G2).exponential_(generator=generator)
            noisy_G2 = logits_G2 - noise_weight * noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
        odds_G = self.odds(noisy_G2)
        return Draw(self.choose(odds_G.detach(), gated, cuts).float(), odds_G.sigmoid(), odds_G)

    def odds(self, logits_G2: Tensor) -> Tensor:
        """Log odds of a cut at the gate's temperature: (G,)."""
        return (logits_G2[:, 1] - logits_G2[:, 0]) / self.config.tau

    def weights(self, draw: Draw) -> Tensor:
        """Weights of the gated frames in the thumbnail: (G,)."""
        return straight_through(draw.hard_G, draw.soft_G)

    def shares(self, draw: Draw, gated: GatedFrames, mask_N: Tensor) -> Tensor | None:
        """Shares of all frames in the cube before their own, in their own, in the next, with a gradient."""
        return None

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
