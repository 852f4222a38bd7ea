"""MiniMindVLM: a frozen CLIP or SigLIP tower, one linear layer, and the language model.

A picture becomes as many tokens as the tower has patches. Each stands in the text as a run of a placeholder
of that length; the run's embeddings are replaced by the projected patches. Letters: B rows, T tokens,
M pictures of a batch, N of a row, P patches, D widths, S side of a picture in pixels.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from quicksviewer.minimind.config import VLLMconfig
from quicksviewer.minimind.model import MiniMindForCausalLM, MiniMindOutput
from quicksviewer.utils.registry import load_target, lookup
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

DEFAULT_TOWER = "./models/clip-vit-base-patch16"
"""Where the guide has users put the tower."""


@dataclass(frozen=True)
class TowerKind:
    """Names of transformers' classes, the keys that a bare configuration needs, and how many tokens stand
    before the patches."""

    config: str
    model: str
    processor: str
    extra: dict
    before_patches: int

    def image_processor(self, side: int):
        """What makes pixels of a picture where the checkpoint does not say how."""
        square = {"height": side, "width": side}
        size = (
            {"size": {"shortest_edge": side}, "crop_size": square}
            if self.before_patches
            else {"size": square}
        )
        return load_target(self.processor)(**size)


CLIP = TowerKind(
    "transformers:CLIPVisionConfig", "transformers:CLIPVisionModel", "transformers:CLIPImageProcessor", {}, 1
)
SIGLIP = TowerKind(
    "transformers:SiglipVisionConfig",
    "transformers:SiglipVisionModel",
    "transformers:SiglipImageProcessor",
    {"vision_use_head": False},
    0,
)
TOWERS = {"clip": CLIP, "clip_vision_model": CLIP, "siglip": SIGLIP, "siglip_vision_model": SIGLIP}
"""model_type of a checkpoint, of the tower alone or of tower and text model, -> its classes."""


class VisionEncoder(nn.Module):
    """From the tower's width to the language model's: one linear layer, named so that optimisers find it."""

    def __init__(self, ve_hidden_size: int = 768, hidden_size: int = 768):
        super().__init__()
        self.vision_proj = nn.Linear(ve_hidden_size, hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(..., D of the tower) -> (..., D of the language model)."""
        return self.vision_proj(patches)


class MiniMindVLM(MiniMindForCausalLM):
    """A MiniMind that sees. `params` is its config, `vision_encoder` the tower or None, `processor` what
    makes its pixels, `vision_proj` the projector."""

    config_class = VLLMconfig

    def __init__(self, params: VLLMconfig | None = None, vision_model_path: str | None = DEFAULT_TOWER):
        """`vision_model_path`: a folder with a CLIP or SigLIP model, or the id of one in transformers' cache.
        Where there is none, the model has only text, and says so. ValueError for a tower that does not fit
        `params.image_ids`."""
        super().__init__(VLLMconfig.of(params))
        self.vision_encoder = self.processor = None
        if self.config.vision_config is not None:  # of a saved model, whose weights come later
            kind = lookup(TOWERS, self.config.vision_config["model_type"], "vision tower")
            vision = load_target(kind.config)(**self.config.vision_config)
            self._attach(
                load_target(kind.model)._from_config(vision), kind.image_processor(vision.image_size)
            )
        self.vision_proj = VisionEncoder(self.config.ve_hidden_size, self.config.hidden_size)
        if vision_model_path is not None:
            self.load_vision_model(vision_model_path)

    def load_vision_model(self, path: str) -> None:
        """Take the tower of a folder; the projector starts anew where its width is another. A path that is
        not there changes nothing."""
        tower, processor = self.get_vision_model(path)
        if tower is None:
            return
        width = self.config.ve_hidden_size
        self._attach(tower.to(self.device, self.dtype), processor)
        if tower.config.hidden_size != width:
            fresh = VisionEncoder(tower.config.hidden_size, self.config.hidden_size)
            self.vision_proj = fresh.to(self.device, self.dtype)

    def _attach(self, tower: PreTrainedModel, processor) -> None:
        vision = tower.config
        patches = (vision.image_size // vision.patch_size) ** 2
        self.config.fit_tower(vision.to_dict(), patches, vision.hidden_size)
        self.vision_encoder, self.processor = tower.requires_grad_(False).eval(), processor

    @property
    def params(self) -> VLLMconfig:
        """The configuration."""
        return self.config

    def train(self, mode: bool = True):
        """The tower stays as it was published: it is never in training mode."""
        super().train(mode)
        if getattr(self, "vision_encoder", None) is not None:
            self.vision_encoder.eval()
        return self

    # --- pictures

    @staticmethod
    def get_vision_model(model_path: str):
        """(tower, image processor): frozen, in eval mode; (None, None) and a warning where there is no model.

        ValueError for a model that is no CLIP or SigLIP. Nothing is fetched from the network.
        """
        try:
            config = AutoConfig.from_pretrained(model_path, local_files_only=True)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) or Path(model_path).is_dir():
                raise ValueError(f"{model_path} holds no vision model: {error}") from error
            logger.warning("%s: no vision model there, going on with text alone", model_path)
            return None, None
        kind = lookup(TOWERS, config.model_type, "vision tower")
        tower = load_target(kind.model).from_pretrained(model_path, local_files_only=True, **kind.extra)
        return tower.requires_grad_(False).eval(), _image_processor(kind, tower.config.image_size, model_path)

    @staticmethod
    def image2tensor(image, processor) -> Tensor:
        """Pixels of a PIL picture of any mode, normalised: (1, 3, S, S)."""
        return processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]

    @staticmethod
    @torch.no_grad()
    def get_image_embeddings(image_tensors: Tensor, vision_model: PreTrainedModel) -> Tensor:
        """Patches of pixels (M, 3, S, S) or (M, 1, 3, S, S): (M, P, D), without a graph, the class token
        left out."""
        kind = lookup(TOWERS, vision_model.config.model_type, "vision tower")
        pixels_M3SS = image_tensors.flatten(0, -4).to(vision_model.device, vision_model.dtype)
        return vision_model(pixel_values=pixels_M3SS).last_hidden_state[:, kind.before_patches :]

    def embed_pictures(self, input_ids_BT: Tensor, pixel_values: Tensor) -> Tensor:
        """Embeddings of ids with pictures in the place of their runs: (B, T, D).

        pixel_values: (B, N, 3, S, S), N pictures for every row, also with an axis of 1 after N; or
        (M, 3, S, S), all pictures of the batch, rows first. ValueError where runs and pictures disagree.
        """
        if self.vision_encoder is None:
            raise ValueError(
                "this model has no vision tower and cannot see pixel_values; load_vision_model gives it one"
            )
        if pixel_values.ndim not in (4, 5, 6):
            raise ValueError(
                f"pixel_values are (B, N, 3, S, S) or (M, 3, S, S), got {tuple(pixel_values.shape)}"
            )
        per_row = [pixel_values.shape[1]] * len(input_ids_BT) if pixel_values.ndim > 4 else None
        pictures = pixel_values.flatten(0, -4).shape[0]
        is_slot_BT = self.check_runs(input_ids_BT, pictures, per_row)
        patches_MPD = self.get_image_embeddings(pixel_values, self.vision_encoder)
        visual_MPD = self.vision_proj(patches_MPD.to(self.vision_proj.vision_proj.weight.dtype))
        embeds_BTD = self.get_input_embeddings()(input_ids_BT)
        return embeds_BTD.masked_scatter(is_slot_BT[..., None], visual_MPD.to(embeds_BTD.dtype))

    def check_runs(self, input_ids_BT: Tensor, pictures: int, per_row: list[int] | None = None) -> Tensor:
        """Where pictures stand: bool (B, T). ValueError unless each stands as a run of exactly P placeholders
        and there are as many as pictures, in every row `per_row` of them if that is given."""
        length, is_slot_BT = len(self.config.image_ids), input_ids_BT == self.config.image_ids[0]
        runs = [run_lengths(row) for row in is_slot_BT.tolist()]
        broken = [run for row in runs for run in row if run % length]
        found = [sum(row) // length for row in runs]
        if broken or sum(found) != pictures or per_row not in (None, found):
            raise ValueError(
                f"{pictures} pictures, each a run of "
                f"{length} placeholders (id {self.config.image_ids[0]}); the text has runs of {runs}. Write "
                "config.image_special_token once for each picture, and cut no text there"
            )
        return is_slot_BT

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> MiniMindOutput:
        """As `MiniMindForCausalLM.forward`; pixel_values are for the runs in these input_ids (see
        `embed_pictures`), and are left out once a cache holds them."""
        if pixel_values is not None:
            if input_ids is None:
                raise ValueError("pixel_values need input_ids, which say where they stand")
            input_ids, inputs_embeds = None, self.embed_pictures(input_ids, pixel_values)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs):
        """As for any model of transformers. Placeholders are never generated: no picture belongs to them."""
        ids, pixels = kwargs.get("input_ids", inputs), kwargs.get("pixel_values")
        if pixels is not None and ids is not None and len(pixels) != len(ids):
            raise ValueError(
                f"generate repeats pictures with their rows: give pixel_values (B, N, 3, S, S) with B = "
                f"{len(ids)}, got {tuple(pixels.shape)}"
            )
        return super().generate(inputs, **{"suppress_tokens": self.config.image_ids[:1], **kwargs})

    # --- folders

    def save_pretrained(self, save_directory, **kwargs):
        """As for any model of transformers; what makes the tower's pixels lies beside it."""
        super().save_pretrained(save_directory, **kwargs)
        if self.processor is not None and kwargs.get("is_main_process", True):
            self.processor.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, path, *args, vision_model_path: str | None = None, **kwargs):
        """As for any model of transformers; the saved tower comes along. `vision_model_path`: another one."""
        loaded = super().from_pretrained(path, *args, vision_model_path=None, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.vision_encoder is not None:
            model.vision_encoder.requires_grad_(False)
            kind = lookup(TOWERS, model.vision_encoder.config.model_type, "vision tower")
            model.processor = _image_processor(kind, model.vision_encoder.config.image_size, path)
        if vision_model_path is not None:
            model.load_vision_model(vision_model_path)
        return loaded


def _image_processor(kind: TowerKind, side: int, path):
    """The image processor of a checkpoint, or the family's usual one where it has none."""
    try:
        return load_target(kind.processor).from_pretrained(path, local_files_only=True)
    except OSError:
        return kind.image_processor(side)


def run_lengths(flags: list[bool]) -> list[int]:
    """Lengths of the runs of true values."""
    edges = [i for i, (a, b) in enumerate(pairwise([False, *flags, False])) if a != b]
    return [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]
