"""Pure functions that put media into text.

Letters: B rows, T tokens, M slots, D width, C cubes, W characters of a timestamp.
"""

import torch
from torch import Tensor

from quicksviewer.model.config import LayoutConfig


def splice(embeds_BTD: Tensor, values_MD: Tensor, slot_BT: Tensor) -> Tensor:
    """Put value m into the m-th true slot, rows first: (B, T, D).

    A batch whose slots and values differ in number cannot be right; torch's scatter refuses too few values,
    and the caller's layout makes both from the same metadata.
    """
    return embeds_BTD.masked_scatter(slot_BT[..., None], values_MD.to(embeds_BTD.dtype))


def time_characters(seconds_C: Tensor, config: LayoutConfig) -> tuple[Tensor, Tensor]:
    """Timestamps as indices into "0123456789.": ((C, W) int64, (C, W) bool which of them are to be kept).

    `fixed` rounds down and keeps leading zeros; `plain` rounds to the nearest and drops them, as published.
    """
    scale = 10**config.time_decimals
    ticks_C = (seconds_C.double() * scale + (0.0 if config.time_style == "fixed" else 0.5)).floor().long()
    places = config.time_digits + config.time_decimals
    ticks_C = ticks_C.clamp(max=10**places - 1)
    powers = 10 ** torch.arange(places - 1, -1, -1, device=seconds_C.device)
    digits_CW = ticks_C[:, None] // powers % 10
    leading_CW = (digits_CW.cumsum(dim=1) == 0) & (
        torch.arange(places, device=powers.device) < config.time_digits - 1
    )
    keep_CW = ~leading_CW if config.time_style == "plain" else torch.ones_like(leading_CW)
    if config.time_decimals:
        split = config.time_digits
        point = torch.full_like(digits_CW[:, :1], 10)
        digits_CW = torch.cat([digits_CW[:, :split], point, digits_CW[:, split:]], dim=1)
        keep_CW = torch.cat([keep_CW[:, :split], torch.ones_like(keep_CW[:, :1]), keep_CW[:, split:]], dim=1)
    return digits_CW, keep_CW
