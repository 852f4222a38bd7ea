"""A conversation with a model: media are decoded and encoded once, answers are streamed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import TextStreamer

from quicksviewer.model.llava_arch import EncodedMedia, Media
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
        self._media, self._encoded = [], None
        torch.manual_seed(self.decoding.seed)

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

    def _generate(self, dialogue: Dialogue, on_text) -> str:
        processor, model = self.loaded.processor, self.loaded.model
        row = processor.encode_turns(dialogue.turns, self._media, generation=True)
        batch = processor.batch([row]).to(model.device)
        if self._media and self._encoded is None:
            self._encoded = self._encode(batch)
            self.encoded_videos += len(self._media)
        streamer = (
            _Pieces(self.loaded.tokenizer, on_text) if on_text and self.decoding.num_beams == 1 else None
        )
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            encoded_media=self._encoded,
            streamer=streamer,
            eos_token_id=processor.stop_ids,
            pad_token_id=processor.pad_id,
            **self.decoding.arguments(),
        )
        new = out[0, batch["input_ids"].shape[1] :]
        text = self.loaded.tokenizer.decode(new, skip_special_tokens=True)
        if on_text and streamer is None:
            on_text(text)
        return text.strip()

    @torch.no_grad()
    def _encode(self, batch) -> EncodedMedia:
        media = Media(
            batch["pixel_values"], batch["frame_times"], batch["medium_frames"], batch["medium_is_video"]
        )
        return self.loaded.model.encode_media(media)


class _Pieces(TextStreamer):
    """Hands finished pieces of text to a function in place of printing them."""

    def __init__(self, tokenizer, on_text):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False):
        if text:
            self.on_text(text)
