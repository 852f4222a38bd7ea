"""A conversation becomes text, and the text becomes token ids with a flag per id: learn it, or only read it.

Templates are rows of TEMPLATES, data without code. `render` writes the turns out as spans of text; `encode`
tokenises the joined spans once and reads the flags off the character offsets, so that the ids are those of
the tokenizer's own chat template, and no label rests on counting tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from quicksviewer.constants import MARKS, MODEL_TOKENS

ROLES = ("system", "user", "assistant")

END_OF_TEXT = "<end_of_text_of_this_tokenizer>"
"""In a template: the tokenizer's own end-of-sequence token, whatever it is called. `encode` puts it in."""


@dataclass(frozen=True)
class Turn:
    """What one side says. Marks (`<image>`, `<video>`) may stand in the text of a user only."""

    role: str
    text: str

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"a turn's role is one of {', '.join(ROLES)}, got {self.role!r}")
        if not isinstance(self.text, str):
            raise ValueError(f"the text of a turn is a str, got {type(self.text).__name__}")


@dataclass(frozen=True)
class Span:
    """A piece of the prompt. `learn`: the model is trained on it."""

    text: str
    learn: bool


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a family of language models wants its turns written. Nothing but strings."""

    name: str
    begin: str = ""
    """Before the first turn."""
    opening: str
    """Before the text of a turn; {role} is filled in."""
    closing: str
    """After the text of a system or user turn."""
    ending: str
    """After the text of an assistant turn, and learned: it is how the model learns to stop."""
    gap: str = ""
    """After `ending`, and not learned."""
    default_system: str | None = None
    """System text of a conversation that has no system turn; None: no system turn either."""
    strip: bool = False
    """Whether white space around a text is dropped."""
    stops: tuple[str, ...]
    """Tokens that end an answer."""
    control: tuple[str, ...]
    """Strings that no turn may contain, since they would forge turns."""
    assistant: str = "assistant"
    """What the assistant is called in its `opening`."""

    def __post_init__(self):
        if not self.ending or not self.stops:
            raise ValueError(f"template {self.name!r} needs an ending and a stop: else an answer never ends")

    def opening_of(self, role: str) -> str:
        """What stands before the text of a turn."""
        return self.opening.format(role=self.assistant if role == "assistant" else role)


CHATML = {
    "opening": "<|im_start|>{role}\n",
    "closing": "<|im_end|>\n",
    "ending": "<|im_end|>",
    "gap": "\n",
    "stops": ("<|im_end|>",),
    "control": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
}

LLAMA_3 = {
    "begin": "<|begin_of_text|>",
    "opening": "<|start_header_id|>{role}<|end_header_id|>\n\n",
    "closing": "<|eot_id|>",
    "ending": "<|eot_id|>",
    "strip": True,
    "stops": ("<|eot_id|>",),
    "control": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ),
}

TEMPLATES = {
    "qwen2": Template(name="qwen2", **CHATML),
    "smollm2": Template(
        name="smollm2",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        **CHATML,
    ),
    "llama_3": Template(name="llama_3", **LLAMA_3),
    # Published Quicksviewer checkpoints of Llama have learned to answer as "system".
    "llama_3_published": Template(name="llama_3_published", assistant="system", **LLAMA_3),
    # A medium and its caption, with nothing around them: to align the projector with a frozen language model.
    "plain": Template(
        name="plain",
        opening="",
        closing="\n",
        ending=END_OF_TEXT,
        stops=(END_OF_TEXT,),
        control=(),
    ),
}


def check_roles(turns: Sequence[Turn]) -> None:
    """An optional system turn, then user and assistant in turns, the user first. Else ValueError."""
    talk = turns[1:] if turns and turns[0].role == "system" else turns
    if not talk:
        raise ValueError("a conversation needs a user turn")
    for place, turn in enumerate(talk, start=len(turns) - len(talk)):
        expected = "assistant" if place > 0 and turns[place - 1].role == "user" else "user"
        if turn.role != expected:
            raise ValueError(f"turn {place} must be of the {expected}, it is of the {turn.role}")


def check_text(template: Template, turn: Turn) -> None:
    """ValueError where the text of a turn holds a string that only the template or the layout may write."""
    marks = () if turn.role == "user" else MARKS
    for string in (*template.control, END_OF_TEXT, *MODEL_TOKENS, *marks):
        if string in turn.text:
            raise ValueError(f"the text of a {turn.role} turn holds {string!r}, which is not for texts")


def _pieces(template: Template, turn: Turn) -> Iterator[Span]:
    text = turn.text.strip() if template.strip else turn.text
    yield Span(template.opening_of(turn.role), False)
    if turn.role == "assistant":
        yield Span(text + template.ending, True)
        yield Span(template.gap, False)
    else:
        yield Span(text + template.closing, False)


def render(template: Template, turns: Iterable[Turn], add_generation_prompt: bool = False) -> list[Span]:
    """The turns as the template writes them; no span is empty. Learned are answers and what ends them.

    `add_generation_prompt` opens an assistant turn at the end, for the model to fill. ValueError: roles that
    do not alternate, or a text with a control string of the template, a token of the model, or a mark in a
    wrong role.
    """
    turns = tuple(turns)
    check_roles(turns)
    for turn in turns:
        check_text(template, turn)
    if template.default_system is not None and turns[0].role != "system":
        turns = (Turn("system", template.default_system), *turns)
    spans = [Span(template.begin, False)]
    for turn in turns:
        spans.extend(_pieces(template, turn))
    if add_generation_prompt:
        if turns[-1].role == "assistant":
            raise ValueError("a generation prompt comes after a user turn, the last one is of the assistant")
        spans.append(Span(template.opening_of("assistant"), False))
    return [span for span in spans if span.text]


def end_of_text(tokenizer) -> str:
    """The text of the tokenizer's end-of-sequence token; ValueError if it has none."""
    if not tokenizer.eos_token:
        raise ValueError("this template ends an answer with the tokenizer's eos_token, and it has none")
    return tokenizer.eos_token


def with_end_of_text(tokenizer, spans: Iterable[Span]) -> list[Span]:
    """The spans with END_OF_TEXT written in the tokenizer's own way, which no text may then contain."""
    spans = list(spans)
    if not any(END_OF_TEXT in span.text for span in spans):
        return spans
    eos = end_of_text(tokenizer)
    if any(eos in span.text for span in spans):
        raise ValueError(f"a text holds {eos!r}, which ends an answer")
    return [Span(span.text.replace(END_OF_TEXT, eos), span.learn) for span in spans]


def _blanks(piece: str) -> int:
    """How many blanks a byte-level token starts with."""
    return len(piece) - len(piece.lstrip("Ġ"))


def _blanks_after(piece: str, offset: Sequence[int]) -> int:
    """How many blanks a byte-level token ends with, beyond `offset`; one of blanks alone has some inside."""
    blanks = _blanks(piece[::-1])
    return blanks - (offset[1] - offset[0]) if blanks == len(piece) else blanks


def _untrimmed(text: str, offsets: list[tuple[int, int]], pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Offsets of the tokens with the blanks that byte-level post-processing (`trim_offsets`) has cut off.

    Between the ends of two tokens are the blanks that end the first, then those that start the second.
    """
    whole = [list(pair) for pair in offsets]
    reached = 0
    for place, (start, end) in enumerate(offsets):
        # A gap may start with what a normalizer has merged into the character before it.
        reached += len(text[reached:start].rstrip(" "))
        if start > reached:
            if place:
                reached = min(start, reached + _blanks_after(pieces[place - 1], whole[place - 1]))
                whole[place - 1][1] = reached
            whole[place][0] = max(reached, start - _blanks(pieces[place]))
        reached = max(reached, end)
    return [(start, end) for start, end in whole]


def _learned(text: str, flags: bytes, start: int, end: int) -> bool:
    """Whether the characters start..end are learned; ValueError where only some are.

    A character of several tokens lies whole in each of them. A token of no characters (a blank that the
    tokenizer put in) belongs to the character that it stands before.
    """
    start = min(start, len(flags) - 1)
    end = max(end, start + 1)
    count = flags.count(1, start, end)
    if 0 < count < end - start:
        around = text[max(0, start - 20) : end + 20]
        raise ValueError(f"token {text[start:end]!r} is learned only in part, in {around!r}")
    return count > 0


def encode(tokenizer, spans: Iterable[Span]) -> tuple[list[int], list[bool]]:
    """Token ids of the joined spans, and for each id whether it is learned: both (T,). A mark is a single id.

    ValueError: a tokenizer without offsets (a slow one), or a token across the border of learned text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets: a fast tokenizer is needed")
    spans = with_end_of_text(tokenizer, spans)
    text = "".join(span.text for span in spans)
    flags = b"".join(bytes([span.learn]) * len(span.text) for span in spans)
    coded = tokenizer(
        text,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids = list(coded["input_ids"])
    offsets = _untrimmed(text, coded["offset_mapping"], tokenizer.convert_ids_to_tokens(ids))
    return ids, [_learned(text, flags, start, end) for start, end in offsets]


def stop_ids(template: Template, tokenizer) -> list[int]:
    """Ids at which generation stops: the template's stops and the tokenizer's end of sequence, ascending.

    ValueError if a stop is not one token of this tokenizer: it was made for another template.
    """
    found = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    for stop in template.stops:
        text = end_of_text(tokenizer) if stop == END_OF_TEXT else stop
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"{text!r}, a stop of {template.name!r}, is {len(ids)} tokens of this tokenizer")
        found.update(ids)
    return sorted(found)
