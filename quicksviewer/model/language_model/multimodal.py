"""What every backbone shares: configuration, the seeing forward pass, generation, building the vision
modules."""

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.model.config import MultimodalConfig
from quicksviewer.model.documents import document_inputs, next_tokens, positions
from quicksviewer.model.linear_loss import LossHead
from quicksviewer.model.llava_arch import (
    PARTS,
    EncodedMedia,
    LlavaMetaForCausalLM,
    Media,
    build_vision,
    own_draw,
)
from quicksviewer.model.multimodal_cubing.base import Cuts

MEDIA_KEYS = ("pixel_values", "frame_times", "medium_frames", "medium_is_video")


@dataclass
class MultimodalOutput(CausalLMOutputWithPast):
    """A causal LM's output, and beside it what the trainer adds to the loss or writes to the logs.

    gate_penalty: sum over gate frames of the 2-norm of the gate logits, or None; cuts: of the batch's media,
    or None; token_losses: (B, T) float32 without gradient, what each token lost on the next one, before its
    weight; None where the loss was computed from logits. Of a mixture of experts: aux_loss, what its routers
    add to the loss, the mean over the batch's documents; expert_counts (layers, experts), how often each was
    chosen.
    """

    gate_penalty: Tensor | None = None
    cuts: Cuts | None = None
    token_losses: Tensor | None = None
    aux_loss: Tensor | None = None
    expert_counts: Tensor | None = None


class MultimodalCausalLM(LlavaMetaForCausalLM):
    """Put it before the backbone in the bases. `config.mm` holds a MultimodalConfig as plain data, or None:
    blind."""

    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    mm_config: MultimodalConfig | None = None
    """None: blind. On the class, because the backbone's constructor initialises weights before ours goes
    on."""
    linear_loss: bool = True
    """In training: the loss without the logits of all tokens (see linear_loss.py). Off: transformers' own."""

    def __init__(self, config):
        super().__init__(config)
        if type(self.lm_head) is nn.Linear:
            self.lm_head.__class__ = LossHead  # the same layer under the same name; it can do one thing more
        if config.mm is not None:
            self._attach_vision(MultimodalConfig.from_dict(config.mm))

    def _attach_vision(self, mm: MultimodalConfig) -> None:
        self.mm_config = mm
        build_vision(self, mm, self.config.hidden_size)

    def initialize_vision_modules(self, mm: MultimodalConfig, vision_tower: str | None = None) -> None:
        """Give a loaded language model its vision modules, fresh but for the tower, which is read from a
        folder.

        The project's own tokens begin as the mean of the language model's embeddings, so that they are
        ordinary words.
        """
        if self.mm_config is not None:
            raise ValueError(
                "this model has vision modules already; load it with config.mm = None to replace them"
            )
        self._attach_vision(mm)
        if vision_tower is not None:
            self.vision_tower.load_pretrained(vision_tower)
        self.config.mm = mm.to_dict()
        self._start_own_tokens()
        words = self.get_input_embeddings().weight
        device = words.device if getattr(self, "is_quantized", False) else None  # loaded to where it stays
        for name, module in self.named_children():
            if name not in PARTS["llm"]:  # which is as it was loaded; quantised, it must not be cast
                module.to(device=device, dtype=words.dtype)

    def _start_own_tokens(self) -> None:
        words = self.get_input_embeddings().weight
        if words.is_meta:
            return
        with torch.no_grad(), own_draw("mm_tokens"), _gathered(words):
            self.mm_tokens.weight.data.copy_(words.float().mean(dim=0).expand_as(self.mm_tokens.weight))
            self.mm_tokens.weight.data.add_(
                torch.randn_like(self.mm_tokens.weight) * 0.1 * words.float().std()
            )

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        pixel_values=None,
        frame_times=None,
        medium_frames=None,
        medium_is_video=None,
        encoded_media: EncodedMedia | None = None,
        noise_weight: float = 0.0,
        noise_generator=None,
        segment_ids=None,
        **kwargs,
    ) -> MultimodalOutput:
        """Logits, and a loss when labels are given. Without media this is the language model itself.

        input_ids, attention_mask, labels: (B, T). The four media arguments are described in `Media`;
        `encoded_media` takes their place when they have been encoded before. `segment_ids` (B, T) says which
        document of its row a token belongs to (see documents.py). kwargs go to the backbone and its loss.
        """
        encoded = encoded_media
        text = dict(attention_mask=attention_mask, position_ids=position_ids, labels=labels)
        if inputs_embeds is None and self.mm_config is not None:
            media = _media(pixel_values, frame_times, medium_frames, medium_is_video)
            encoded = encoded or self.encode_media(media, noise_weight, noise_generator)
            if self.team.size > 1:
                out = self._forward_shard(input_ids, encoded, segment_ids, text, **kwargs)
                return _with_extras(out, encoded)
            inputs_embeds, text["attention_mask"] = self.fuse(input_ids, attention_mask, encoded)
            input_ids = None
            if not self.layout.is_exact and position_ids is None and text["attention_mask"] is not None:
                position_ids = (text["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
                text["position_ids"] = position_ids[:, -inputs_embeds.shape[1] :]
        if segment_ids is not None:
            kwargs |= {"use_cache": False}
            text = self._by_document(segment_ids, **text)
        out = self._language_model(
            input_ids=input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **text,
            **kwargs,
        )
        return _with_extras(out, encoded)

    def _language_model(
        self,
        labels=None,
        shift_labels=None,
        num_items_in_batch=None,
        loss_weights=None,
        shift_weights=None,
        logits_to_keep: int | Tensor = 0,
        **inputs,
    ):
        """The backbone. In training with labels: the loss of `loss_weights` (B, T, at the place of their
        label; default 1) * token losses, divided by `num_items_in_batch` or the sum of weights; no logits."""
        if labels is None or not (self.training and self.linear_loss and isinstance(self.lm_head, LossHead)):
            if loss_weights is not None or shift_weights is not None:
                raise ValueError("loss_weights are for training with linear_loss on")
            given = dict(shift_labels=shift_labels, num_items_in_batch=num_items_in_batch)
            given = {name: value for name, value in given.items() if value is not None}
            return super().forward(labels=labels, logits_to_keep=logits_to_keep, **inputs, **given)
        targets = next_tokens(labels) if shift_labels is None else shift_labels
        weights = shift_weights if loss_weights is None else F.pad(loss_weights[:, 1:], (0, 1))
        out = self.model(**inputs)
        total, losses = self.lm_head(out.last_hidden_state, targets, weights)
        if num_items_in_batch is None:
            learned = targets != IGNORE_INDEX
            num_items_in_batch = learned.sum() if weights is None else (weights * learned).sum()
        loss = total / torch.as_tensor(num_items_in_batch, device=total.device)
        shared = {key: value for key, value in out.items() if key != "last_hidden_state"}
        return MultimodalOutput(loss=loss, token_losses=losses, **shared)

    def _by_document(self, segment_ids_BT, attention_mask, position_ids, labels) -> dict:
        """Mask, positions and targets of rows that hold several documents.

        What `attention_mask` (B, T) leaves out, as the zeros that plain timestamps drop, becomes padding.
        """
        if attention_mask is not None:
            segment_ids_BT = segment_ids_BT * attention_mask
        text = document_inputs(segment_ids_BT, self.config._attn_implementation, self.dtype)
        text |= {"position_ids": self._positions(segment_ids_BT, position_ids)}
        text |= self._about_rows(segment_ids_BT)
        if labels is not None:
            text |= {"labels": labels, "shift_labels": next_tokens(labels, segment_ids_BT)}
        return text

    def _about_rows(self, segment_ids_BT, places=None) -> dict:
        """What a backbone wants to know of the documents of its rows, or of those `places` of them that this
        process of a team has: keyword arguments of its own."""
        return {}

    def _positions(self, segment_ids_BT, given):
        """Positions as given, unless plain timestamps have dropped tokens that the giver had counted."""
        is_exact = self.mm_config is None or self.layout.is_exact
        return given if given is not None and is_exact else positions(segment_ids_BT)

    def _forward_shard(self, input_ids, encoded, segment_ids, text: dict, loss_weights=None, **kwargs):
        """This process's shard of the batch. The mean of the losses of a team, also of single tokens, is that
        of the whole batch."""
        ids, mask = input_ids, text["attention_mask"]
        if encoded is not None:
            ids, mask = self.write_times(ids, mask, encoded)
        segments = mask if segment_ids is None else segment_ids if mask is None else segment_ids * mask
        segments = torch.ones_like(ids) if segments is None else segments.long()
        rows = {
            "input_ids": ids,
            "segment_ids": segments,
            "position_ids": self._positions(segments, text["position_ids"]),
            "targets": None if text["labels"] is None else next_tokens(text["labels"], segments),
            "weights": None if loss_weights is None else F.pad(loss_weights[:, 1:], (0, 1)),
        }
        shard = self.team.cut(rows, input_ids == self.layout.visual_id, encoded.counts if encoded else [])
        embeds = self._embed_shard(shard, encoded)
        if shard.targets is not None and kwargs.get("num_items_in_batch") is None:
            kwargs = {**kwargs, "num_items_in_batch": shard.num_targets / self.team.size}
        targets = {"labels": shard.targets, "shift_labels": shard.targets, "shift_weights": shard.weights}
        kwargs = {**kwargs, **targets, **shard.attention, "use_cache": False}
        kwargs |= self._about_rows(segments, shard.places)
        out = self._language_model(inputs_embeds=embeds, position_ids=shard.position_ids, **kwargs)
        if out.get("token_losses") is not None:
            whole = torch.zeros(len(ids), shard.places.numel() * self.team.size, device=ids.device)
            whole[:, shard.places] = out.token_losses * self.team.size
            out.token_losses = whole[:, : ids.shape[1]]
        return out

    def _embed_shard(self, shard, encoded: EncodedMedia | None):
        """Embeddings of a shard: (B, T of the shard, D). Visual tokens travel to where their slots are."""
        if encoded is None:
            return self._embed(shard.ids)
        visual = self.team.exchange(encoded.visual[shard.order], shard.send, shard.receive)
        return self.embed_with(shard.ids, visual, encoded.ballast)

    @torch.no_grad()
    def generate(self, inputs=None, *, input_ids=None, attention_mask=None, encoded_media=None, **kwargs):
        """As for any model of transformers; media are encoded once, before the first token. Returns prompt
        and answer."""
        input_ids = inputs if input_ids is None else input_ids
        media = _media(*(kwargs.pop(key, None) for key in MEDIA_KEYS))
        if self.mm_config is not None and input_ids is not None and (media or encoded_media):
            encoded_media = encoded_media or self.encode_media(media)
            embeds, attention_mask = self.fuse(input_ids, attention_mask, encoded_media)
            kwargs["inputs_embeds"] = embeds
        return super().generate(input_ids, attention_mask=attention_mask, **kwargs)

    def chat(self, messages: list[dict], processor, **generation) -> str:
        """The answer to transformers' messages (see `QuicksviewerProcessor.apply_chat_template`), greedy by
        default.

        For several turns about one video, `serve.session.ChatSession` encodes it once.
        """
        batch = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True).to(
            self.device
        )
        settings = {
            "do_sample": False,
            "max_new_tokens": 512,
            "eos_token_id": processor.stop_ids,
            **generation,
        }
        out = self.generate(**batch, pad_token_id=processor.pad_id, **settings)
        new = out[0, batch["input_ids"].shape[1] :]
        return processor.tokenizer.decode(new, skip_special_tokens=True).strip()

    def _init_weights(self, module):
        """Vision modules initialise themselves when they are built; only the backbone follows transformers'
        rule."""
        if self.mm_config is None or module in set(self.model.modules()) | {self.lm_head}:
            super()._init_weights(module)


def _with_extras(out, encoded: EncodedMedia | None) -> MultimodalOutput:
    if encoded is None:
        return MultimodalOutput(**out)
    return MultimodalOutput(**out, gate_penalty=encoded.gate_penalty, cuts=encoded.cuts)


def _media(pixel_values, frame_times, medium_frames, medium_is_video) -> Media | None:
    if pixel_values is None or len(pixel_values) == 0:
        return None
    return Media(pixel_values, frame_times, list(medium_frames), list(medium_is_video))


def _gathered(parameter):
    """The whole of a parameter that ZeRO-3 may have spread over ranks."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
