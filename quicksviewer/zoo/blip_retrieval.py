"""BLIP for pictures and texts that belong together, with the training loss that transformers' class lacks.

Li et al., BLIP (arXiv 2201.12086), section 3.2: a contrastive loss on the two projections, and a matching
loss of the head on true pairs and on the pairs of the batch that are most easily taken for true. Without
BLIP's momentum encoder and queue. The class has the name of transformers', whose checkpoints it reads and
writes.
"""

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

TEMPERATURE = 0.07
"""What similarities are divided by; BLIP learns it from this value, its checkpoints do not hold it."""


class BlipForImageTextRetrieval(transformers.BlipForImageTextRetrieval):
    """Scores as in transformers, and a loss in two cases: `labels` or `return_loss`."""

    accepts_loss_kwargs = False  # its losses are means already

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        use_itm_head: bool = True,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_loss: bool = False,
        **options,
    ):
        """itm_score: (B, 2), no and yes, with the head; the similarities (B pictures, B texts) without it.

        labels: int64 (B,), 1 where picture and text belong together: the loss is that of the head.
        return_loss: row i of the pictures belongs to row i of the texts and to no other: `pair_loss`.
        """
        output = super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            use_itm_head=use_itm_head,
            attention_mask=attention_mask,
            **options,
        )
        if labels is not None:
            if not use_itm_head or labels.shape != (len(input_ids),):
                raise ValueError(
                    f"labels are 0 or 1 for each of {len(input_ids)} pairs and need the matching head, got "
                    f"shape {tuple(labels.shape)} with use_itm_head={use_itm_head}; for pairs use return_loss"
                )
            output.loss = cross_entropy(output.itm_score, labels)
        elif return_loss:
            output.loss = self.pair_loss(output.last_hidden_state, input_ids, attention_mask)
        return output

    def pair_loss(self, pictures: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Contrastive plus matching loss of B true pairs, from the vision tower's output (B, P, D_v)."""
        if len(input_ids) < 2:
            raise ValueError("return_loss compares pairs with each other: a batch needs at least 2")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        similarity = self._similarity(pictures, input_ids, attention_mask)
        pairs = torch.arange(len(input_ids), device=similarity.device)
        logits = similarity / TEMPERATURE
        contrastive = (cross_entropy(logits, pairs) + cross_entropy(logits.t(), pairs)) / 2
        wrong = similarity.detach().masked_fill(torch.eye(len(pairs), device=pairs.device).bool(), -torch.inf)
        hard_text, hard_picture = wrong.argmax(1), wrong.argmax(0)
        of_picture = torch.cat([pairs, pairs, hard_picture])
        of_text = torch.cat([pairs, hard_text, pairs])
        answers = self._match(pictures[of_picture], input_ids[of_text], attention_mask[of_text])
        is_pair = torch.zeros_like(of_text)
        is_pair[: len(pairs)] = 1
        return contrastive + cross_entropy(answers, is_pair)

    def _similarity(self, pictures: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        texts = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        eyes = torch.nn.functional.normalize(self.vision_proj(pictures[:, 0]), dim=-1)
        return eyes @ torch.nn.functional.normalize(self.text_proj(texts[:, 0]), dim=-1).t()

    def _match(self, pictures: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        joined = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=pictures,
            encoder_attention_mask=torch.ones(pictures.shape[:-1], dtype=torch.long, device=pictures.device),
        )
        return self.itm_head(joined.last_hidden_state[:, 0])
