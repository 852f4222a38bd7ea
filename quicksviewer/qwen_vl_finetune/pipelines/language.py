"""The language model over pictures whose visual tokens are already there: positions, states, words, their
loss.

Letters: B rows, T tokens, E extra tokens in front, D width. Rows are padded on the right. Positions are
always given: without them Qwen2.5-VL counts embeddings one by one and forgets where in the picture a token
lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.constants import IGNORE_INDEX

ENDS_TURN = "<|im_end|>"


class Prompts:
    """Questions about one picture each, as tokens: the chat template up to where the answer begins."""

    def __init__(self, processor):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_id = processor.image_token_id
        self.pad_id = self.tokenizer.pad_token_id
        self.end_id = self.tokenizer.convert_tokens_to_ids(ENDS_TURN)
        self._rendered: dict[str, tuple[list[int], list[int]]] = {}

    def render(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens in front of the picture's and behind them; each text is tokenised once."""
        if text not in self._rendered:
            self._rendered[text] = self._render(text)
        return self._rendered[text]

    def _render(self, text: str) -> tuple[list[int], list[int]]:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        chat = self.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        before, mark, after = chat.partition(self.processor.image_token)
        if not mark or self.processor.image_token in after:
            raise ValueError(f"the prompt must hold one picture, the chat template gives {chat!r}")
        return self.encode(before), self.encode(after)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def ids(self, text: str, image_tokens: int) -> list[int]:
        """All tokens of a question about a picture of that many tokens."""
        before, after = self.render(text)
        return [*before, *[self.image_id] * image_tokens, *after]

    def words(self, *words: str) -> list[list[int]]:
        """Tokens of the answers that are told apart. ValueError unless their first tokens differ."""
        found = [self.encode(word) for word in words]
        if not all(found) or len({ids[0] for ids in found}) < len(found):
            raise ValueError(f"the answers must begin with different tokens: {words} are {found}")
        return found


@dataclass(frozen=True)
class Rows:
    """Token sequences of a batch, each with one picture."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels_BT: Tensor
    """IGNORE_INDEX except at answers."""
    is_image_BT: Tensor

    @property
    def lengths_B(self) -> Tensor:
        return self.attention_mask_BT.sum(dim=1)


def make_rows(
    prompts: Prompts, questions: Sequence[list[int]], answers: Sequence[list[int]], device: torch.device
) -> Rows:
    """Each question with its answer, padded on the right; of an answer every token is a target."""
    whole = [[*question, *answer] for question, answer in zip(questions, answers, strict=True)]
    width = max(map(len, whole))
    ids = torch.full((len(whole), width), prompts.pad_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for place, (row, question) in enumerate(zip(whole, questions, strict=True)):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        labels[place, len(question) : len(row)] = ids[place, len(question) : len(row)]
    ids, mask, labels = (tensor.to(device) for tensor in (ids, mask, labels))
    return Rows(ids, mask, labels, ids == prompts.image_id)


def image_tokens(grid_B3: Tensor, merge: int) -> list[int]:
    """Visual tokens of each picture."""
    return (grid_B3.prod(dim=1) // merge**2).tolist()


def states(
    base: nn.Module, rows: Rows, grid_B3: Tensor, vision: Tensor, extra_BED: Tensor | None = None
) -> Tensor:
    """Last hidden states of the language model, of the rows' own tokens: (B, T, D).

    base   a Qwen2_5_VLForConditionalGeneration
    vision merged tokens of all pictures, in order
    extra  embeddings in front of each row; they take the positions 0 .. E-1, the row's own follow
    """
    embeds_BTD = base.get_input_embeddings()(rows.input_ids_BT)
    if int(rows.is_image_BT.sum()) != len(vision):
        raise ValueError(
            f"the rows have {int(rows.is_image_BT.sum())} places for {len(vision)} visual tokens"
        )
    where = rows.is_image_BT[..., None].expand_as(embeds_BTD)
    embeds_BTD = embeds_BTD.masked_scatter(where, vision.to(embeds_BTD.dtype))
    positions_3BT, _ = base.model.get_rope_index(
        rows.input_ids_BT,
        mm_token_type_ids=rows.is_image_BT.int(),
        image_grid_thw=grid_B3,
        attention_mask=rows.attention_mask_BT,
    )
    mask_BT, ahead = rows.attention_mask_BT, 0
    if extra_BED is not None:
        ahead = extra_BED.shape[1]
        embeds_BTD = torch.cat([extra_BED.to(embeds_BTD.dtype), embeds_BTD], dim=1)
        mask_BT = F.pad(mask_BT, (ahead, 0), value=1)
        first = torch.arange(ahead, device=mask_BT.device).expand(3, len(mask_BT), ahead)
        positions_3BT = torch.cat([first, positions_3BT + ahead], dim=2)
    seen = base.model.language_model(
        inputs_embeds=embeds_BTD, position_ids=positions_3BT, attention_mask=mask_BT, use_cache=False
    )
    return seen.last_hidden_state[:, ahead:]


def answer_loss(base: nn.Module, hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens. Logits are made where there is a target and nowhere else."""
    is_asked = labels_BT[:, 1:] != IGNORE_INDEX
    logits = base.lm_head(hidden_BTD[:, :-1][is_asked]).float()
    return F.cross_entropy(logits, labels_BT[:, 1:][is_asked])


def word_scores(base, rows_of, words: Sequence[list[int]], hidden_of) -> Tensor:
    """log P(word) for each row and word, summed over the word's tokens: (B, words) float32.

    rows_of    tokens that follow each question -> Rows
    hidden_of  Rows -> (B, T, D)
    Words of one token share one run of the model.
    """
    runs: dict[tuple[int, ...], Tensor] = {}
    for word in words:
        head = tuple(word[:-1])
        if head not in runs:
            rows = rows_of(list(head))
            hidden_BTD = hidden_of(rows)
            back = torch.arange(len(head) + 1, 0, -1, device=hidden_BTD.device)
            last = rows.lengths_B[:, None] - back  # the last len(head) + 1 tokens of each row
            picked = hidden_BTD.gather(1, last[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
            runs[head] = base.lm_head(picked).float().log_softmax(dim=-1)
    scores = []
    for word in words:
        steps = torch.tensor(word, device=runs[tuple(word[:-1])].device)
        found = runs[tuple(word[:-1])].gather(
            2, steps[None, :, None].expand(len(runs[tuple(word[:-1])]), -1, 1)
        )
        scores.append(found.squeeze(2).sum(dim=1))
    return torch.stack(scores, dim=1)
