"""BLIP that writes answers and captions: labels may be padded, and batches equal single items.

transformers' class for questions reads labels as the decoder's input too, so that -100 is no word it knows,
and lets an answer look at the padding of its question: `generate` gives no mask, and the mask that `forward`
gives is lost on its way (5.23). Both of its classes learn texts that begin with [CLS], while generation
begins with the decoder's own start. The classes here differ in these points only. They have the same names,
so that what is saved from them is a checkpoint of transformers' classes.
"""

import torch
import transformers
from torch import Tensor

from quicksviewer.constants import IGNORE_INDEX


def decoder_batch(labels: Tensor, start: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B, T), padded with `pad` or -100 -> decoder_input_ids, decoder_attention_mask, labels (B, T).

    The decoder reads `start` and the answer, and learns the answer and its end. The first label of a row is
    its start and no target: transformers shifts by one inside.
    """
    is_word = (labels != IGNORE_INDEX) & (labels != pad)
    inputs = labels.masked_fill(~is_word, pad)
    inputs[:, 0] = start
    is_read = is_word.clone()
    is_read[:, 0] = True
    return inputs, is_read.long(), labels.masked_fill(~is_word, IGNORE_INDEX)


def check_starts(labels: Tensor, starts: tuple[int, ...]) -> None:
    """ValueError if a row begins with another id: its first word would be overwritten by the start."""
    if starts and not torch.isin(labels[:, 0], torch.tensor(starts, device=labels.device)).all():
        raise ValueError(
            f"labels begin with the ids {labels[:, 0].unique().tolist()[:5]}, expected [CLS] ({starts[0]}): "
            "tokenise answers with their special tokens and pad them on the right"
        )


def know_tokenizer(model, tokenizer) -> None:
    """From now on, a BLIP that writes refuses labels that do not begin with the tokenizer's [CLS]."""
    if hasattr(model, "answer_starts") and tokenizer.cls_token_id is not None:
        model.answer_starts = (tokenizer.cls_token_id, model.config.text_config.bos_token_id)


def with_mask(module, inputs, named):
    """Give a cross-attention, under the name that it reads, the mask that it is called with."""
    if named.get("encoder_attention_mask") is None:
        named = {**named, "encoder_attention_mask": named.get("attention_mask")}
    return inputs, named


class BlipForQuestionAnswering(transformers.BlipForQuestionAnswering):
    """`forward(pixel_values, input_ids, attention_mask, labels)` trains; `generate` answers in batches.

    labels: int64 (B, T), the tokenised answers with their [CLS] and [SEP], padded with -100 or the pad id.
    """

    accepts_loss_kwargs = False  # its loss is a mean already; a trainer must not divide by its own count
    answer_starts: tuple[int, ...] = ()
    """Ids that a row of labels may begin with; empty: not checked. `know_tokenizer` sets them."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.text_decoder.bert.encoder.layer:
            layer.crossattention.self.register_forward_pre_hook(with_mask, with_kwargs=True)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **options,
    ):
        """As transformers': loss where labels are given, no logits. decoder_input_ids stay as they are."""
        if labels is not None and decoder_input_ids is None:
            check_starts(labels, self.answer_starts)
            decoder_input_ids, decoder_attention_mask, labels = decoder_batch(
                labels, self.decoder_start_token_id, self.decoder_pad_token_id
            )
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            attention_mask=attention_mask,
            labels=labels,
            **options,
        )

    @torch.no_grad()
    def generate(
        self, input_ids, pixel_values, attention_mask=None, interpolate_pos_encoding=False, **options
    ):
        """Answers as ids (B, T), begun with the decoder's start. `options`: those of transformers."""
        input_ids = torch.as_tensor(input_ids, device=pixel_values.device)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pictures = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
        ).last_hidden_state
        questions = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=pictures,
            encoder_attention_mask=attention_mask.new_ones(pictures.shape[:-1]),
        ).last_hidden_state
        return self.text_decoder.generate(
            input_ids=input_ids.new_full((len(input_ids), 1), self.decoder_start_token_id),
            eos_token_id=self.config.text_config.sep_token_id,
            pad_token_id=self.config.text_config.pad_token_id,
            encoder_hidden_states=questions,
            encoder_attention_mask=attention_mask,
            **options,
        )


class BlipForConditionalGeneration(transformers.BlipForConditionalGeneration):
    """`forward(pixel_values, input_ids, attention_mask, labels)` trains; `generate` is transformers'.

    labels: int64 (B, T), tokenised captions, padded as above. The decoder reads input_ids, which hold a
    prompt and the caption as transformers wants them, or, without any, the labels.
    """

    accepts_loss_kwargs = False
    answer_starts: tuple[int, ...] = ()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **options,
    ):
        """As transformers': loss where labels are given, and logits (B, T, V)."""
        if labels is not None:
            words = labels if input_ids is None else input_ids
            check_starts(words, self.answer_starts)
            text = self.config.text_config
            input_ids, read, _ = decoder_batch(words, text.bos_token_id, text.pad_token_id)
            attention_mask = read if attention_mask is None else attention_mask
            labels = decoder_batch(labels, text.bos_token_id, text.pad_token_id)[2]
        return super().forward(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            **options,
        )
