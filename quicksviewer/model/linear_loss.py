"""Cross-entropy of a linear layer, without the logits of all tokens: they are made and used a chunk at a
time, and gradients are computed in the same pass, so that the backward pass multiplies by one number.

Letters: T tokens, K of them with a target, V vocabulary, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.constants import IGNORE_INDEX

CHUNK_BYTES = 64 * 2**20
"""Size of a chunk's float32 logits when nobody says how many tokens a chunk has."""


def linear_cross_entropy(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    *,
    chunk: int | None = None,
    weights_T: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of weight * cross-entropy of softmax(hidden @ weight.T), a float32 scalar.

    Tokens whose label is IGNORE_INDEX count for nothing. `weights_T` (no gradient) weighs each token,
    default 1. `chunk`: tokens whose logits exist at a time. ValueError for shapes that do not fit.
    """
    return token_losses(hidden_TD, weight_VD, labels_T, chunk=chunk, weights_T=weights_T)[0]


def token_losses(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    *,
    chunk: int | None = None,
    weights_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy`, and beside it the loss of every token before its weight: (T,) float32 without
    gradient, 0 where there is no target."""
    if hidden_TD.shape[:1] != labels_T.shape or hidden_TD.shape[-1] != weight_VD.shape[-1]:
        raise ValueError(
            f"hidden {tuple(hidden_TD.shape)}, weight {tuple(weight_VD.shape)} and labels "
            f"{tuple(labels_T.shape)} must be (T, D), (V, D) and (T,)"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    device = hidden_TD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_TD, weight_VD = hidden_TD.to(dtype), weight_VD.to(dtype)
    places_K = (labels_T != IGNORE_INDEX).nonzero()[:, 0]
    weights_K = None if weights_T is None else weights_T[places_K].float()
    chunk = chunk or max(1, CHUNK_BYTES // (4 * weight_VD.shape[0]))
    with torch.autocast(device, enabled=False):
        hidden_KD, labels_K = hidden_TD[places_K], labels_T[places_K]
        total, losses_K = _LinearCrossEntropy.apply(hidden_KD, weight_VD, labels_K, weights_K, chunk)
    return total, losses_K.new_zeros(labels_T.shape).index_copy(0, places_K, losses_K)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients of inputs that need none are not computed; that of the weight is summed in float32."""

    @staticmethod
    def forward(ctx, hidden_KD, weight_VD, labels_K, weights_K, chunk):
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        losses_K = torch.empty(len(labels_K), dtype=torch.float32, device=hidden_KD.device)
        d_hidden_KD = torch.zeros_like(hidden_KD) if wants_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for start in range(0, len(labels_K), chunk):
            part = slice(start, start + chunk)
            probs_CV, losses_K[part] = _softmax_and_loss(hidden_KD[part] @ weight_VD.T, labels_K[part])
            if not (wants_hidden or wants_weight):
                continue
            probs_CV.scatter_add_(1, labels_K[part, None], probs_CV.new_full((len(probs_CV), 1), -1.0))
            if weights_K is not None:
                probs_CV *= weights_K[part, None]
            d_logits_CV = probs_CV.to(hidden_KD.dtype)
            if wants_hidden:
                torch.mm(d_logits_CV, weight_VD, out=d_hidden_KD[part])
            if wants_weight:
                _add_product(d_weight_VD, d_logits_CV, hidden_KD[part])
        weighted_K = losses_K if weights_K is None else losses_K * weights_K
        d_weight_VD = d_weight_VD.to(weight_VD.dtype) if wants_weight else None
        ctx.grads = d_hidden_KD, d_weight_VD
        ctx.mark_non_differentiable(losses_K)
        return weighted_K.sum(), losses_K

    @staticmethod
    def backward(ctx, d_total, _):
        if ctx.grads is None:
            raise RuntimeError("the gradients of this loss are gone: its backward pass can run only once")
        grads, ctx.grads = ctx.grads, None
        scaled = [None if grad is None else grad.mul_(d_total) for grad in grads]
        return *scaled, None, None, None


def _softmax_and_loss(logits_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (C, V), in the place of float32 logits, and losses (C,), both float32."""
    logits_CV = logits_CV.float()
    target_C = logits_CV.gather(1, labels_C[:, None])[:, 0]
    top_C1 = logits_CV.amax(dim=1, keepdim=True)
    sum_C1 = logits_CV.sub_(top_C1).exp_().sum(dim=1, keepdim=True)
    losses_C = (sum_C1.log() + top_C1)[:, 0] - target_C
    return logits_CV.div_(sum_C1), losses_C


def _add_product(sum_VD: Tensor, left_CV: Tensor, right_CD: Tensor) -> None:
    """sum += left.T @ right, in float32."""
    if left_CV.dtype == sum_VD.dtype:
        sum_VD.addmm_(left_CV.T, right_CD)
    else:
        sum_VD += left_CV.T @ right_CD


class LossHead(nn.Linear):
    """A language model's last layer that can also give the loss in place of the logits.

    The loss is part of the layer's own forward pass, so that whoever gathers its weight for a call (ZeRO-3)
    does so for the loss, too.
    """

    def forward(self, hidden: Tensor, targets: Tensor | None = None, weights: Tensor | None = None):
        """Logits (..., V); with targets (...), shifted already, the sum of the losses, and each of them."""
        if targets is None:
            return F.linear(hidden, self.weight, self.bias)
        if self.bias is not None:
            raise ValueError("the loss of a layer with a bias is not supported; give no targets")
        flat = None if weights is None else weights.flatten()
        total, losses_T = token_losses(hidden.flatten(0, -2), self.weight, targets.flatten(), weights_T=flat)
        return total, losses_T.view_as(targets)
