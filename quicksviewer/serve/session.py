"""A conversation with a model: media are decoded and encoded once, answers are streamed."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers.generation.streamers import BaseStreamer

from quicksviewer.model.llava_arch import EncodedMedia, Media
from quicksviewer.model.multimodal_cubing.base import Cuts
from quicksviewer.serve.dialogue import Dialogue


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn. Greedy unless a temperature is given."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.temperature < 0 or self.num_beams < 1:
            raise ValueError(f"bad decoding settings: {self}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if (self.top_k or 0) < 0 or self.repetition_penalty <= 0:
            raise ValueError(f"bad decoding settings: {self}")
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise ValueError("top_p and top_k need a temperature above 0: greedy decoding draws nothing")

    def arguments(self) -> dict:
        """Keyword arguments of generate. Every one is said, so that no checkpoint's defaults creep in."""
        shared = dict(
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=self.repetition_penalty,
            num_beams=self.num_beams,
        )
        if self.temperature == 0:
            return {**shared, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        top_p = 1.0 if self.top_p is None else self.top_p
        drawn = dict(do_sample=True, temperature=self.temperature, top_p=top_p, top_k=self.top_k or 0)
        return {**shared, **drawn}


@dataclass
class ChatSession:
    """A model and what has been said to it. `ask` adds a question and returns the answer."""

    loaded: object
    decoding: Decoding = field(default_factory=Decoding)
    dialogue: Dialogue = field(default_factory=Dialogue)
    encoded_videos: int = 0
    """Media that went through the tower so far; each does so once."""

    def __post_init__(self):
        self._media, self._parts, self._encoded = [], [], None

    @property
    def media(self) -> list:
        """The decoded media of the dialogue."""
        return list(self._media)

    @property
    def encoded(self) -> EncodedMedia | None:
        """The dialogue's media as the language model reads them, with their cuts."""
        return self._encoded

    def see(self, path: str) -> None:
        """Show an image or a video with the next question. It is decoded now, so that errors come now."""
        dialogue = self.dialogue.see(path)
        mark = dialogue.waiting[-1][0]
        medium = self.loaded.processor.load(mark, path)
        self.dialogue, self._media = dialogue, [*self._media, medium]
        self._encoded = None

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> str:
        """The answer to a question; `on_text` receives its pieces as they come."""
        dialogue = self.dialogue.say(question)
        answer = self._generate(dialogue, on_text)
        self.dialogue = dialogue.say(answer or "(no answer)")
        return answer

    @torch.no_grad()
    def encode(self) -> EncodedMedia | None:
        """The dialogue's media as the language model reads them; only what is new goes through the tower."""
        device = self.loaded.model.device
        for medium in self._media[len(self._parts) :]:
            kinds = [medium.is_video] * len(medium.frames)
            media = Media(medium.pixels.to(device), medium.times.to(device), medium.frames, kinds)
            self._parts.append(self.loaded.model.encode_media(media))
            self.encoded_videos += 1
        if self._parts and self._encoded is None:
            self._encoded = join_encoded(self._parts)
        return self._encoded

    def _generate(self, dialogue: Dialogue, on_text) -> str:
        processor, model, tokenizer = self.loaded.processor, self.loaded.model, self.loaded.tokenizer
        row = processor.encode_turns(dialogue.turns, self._media, generation=True)
        batch = processor.batch([{"input_ids": row["input_ids"]}]).to(model.device)
        streamer = Pieces(tokenizer, on_text) if on_text and self.decoding.num_beams == 1 else None
        encoded = self.encode()
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self._seed(dialogue))
            out = model.generate(
                **batch,
                encoded_media=encoded,
                streamer=streamer,
                eos_token_id=processor.stop_ids,
                pad_token_id=processor.pad_id,
                **self.decoding.arguments(),
            )
        text = decoded(tokenizer, out[0, batch["input_ids"].shape[1] :])
        if on_text and streamer is None and text:
            on_text(text)
        return text

    def _seed(self, dialogue: Dialogue) -> int:
        """Of an answer: it follows from the session's seed and the place of the answer alone."""
        return random.Random(f"{self.decoding.seed} {len(dialogue.turns)}").getrandbits(63)


def join_encoded(parts: list[EncodedMedia]) -> EncodedMedia:
    """Media that were encoded one by one, as if they had been encoded together."""
    cubes, frames, first, own = 0, 0, [], []
    for part in parts:
        own.append(part.cuts.cube_of_frame + cubes)
        first.append(part.cuts.first_frame + frames)
        cubes, frames = cubes + sum(part.cuts.cubes), frames + len(part.cuts.cube_of_frame)
    gates = [part.cuts.gate_logits for part in parts if part.cuts.gate_logits is not None]
    cuts = Cuts(
        torch.cat(own),
        torch.cat(first),
        [count for part in parts for count in part.cuts.cubes],
        torch.cat([part.cuts.mask for part in parts]),
        torch.cat(gates) if gates else None,
    )
    visual, times, keep = (torch.cat([getattr(p, n) for p in parts]) for n in ("visual", "times", "keep"))
    return EncodedMedia(visual, times, keep, cuts)


def decoded(tokenizer, ids) -> str:
    """The text of an answer, without white space around it."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


class Pieces(BaseStreamer):
    """Hands an answer to a function as it grows. Joined, the pieces are the answer.

    The answer is decoded as a whole each time, since tokens decoded apart from their neighbours lose blanks.
    """

    BYTE = re.compile("<0x[0-9A-F]{2}>")
    """A token that is a part of a letter."""

    def __init__(self, tokenizer, on_text: Callable[[str], None]):
        self.tokenizer, self.on_text = tokenizer, on_text
        self.words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
        self.ids, self.shown = None, 0

    def put(self, value):
        if self.ids is None:  # the prompt comes first
            self.ids = []
            return
        self.ids += [token for token in value.flatten().tolist() if token in self.words]
        text = decoded(self.tokenizer, self.ids)
        last = self.tokenizer.convert_ids_to_tokens(self.ids[-1:])
        if not any(map(self.BYTE.fullmatch, last)) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(text)

    def end(self):
        self._show(decoded(self.tokenizer, self.ids or []))

    def _show(self, text: str):
        if len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.shown = len(text)
