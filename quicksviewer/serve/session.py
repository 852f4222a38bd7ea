"""A conversation with a model: media are decoded and encoded once, nothing is read twice, answers are
streamed."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from transformers import StoppingCriteriaList

from quicksviewer.model.llava_arch import EncodedMedia, Media
from quicksviewer.model.multimodal_cubing.base import Cuts
from quicksviewer.serve.decoding import Decoding, Pieces, decoded
from quicksviewer.serve.dialogue import Dialogue
from quicksviewer.serve.memory import Memory
from quicksviewer.serve.stages import Times, Watch, timed_parts


class TooLong(ValueError):
    """A conversation that the model has no room for. `tokens`: its length, `room`: what the model reads."""

    def __init__(self, tokens: int, room: int):
        self.tokens, self.room = tokens, room
        super().__init__(
            f"the conversation takes {tokens} tokens, and the model has room for {room}, the answer among "
            "them: begin a new one (/clear), or show fewer frames of a video (--video_nframes)"
        )


@dataclass
class ChatSession:
    """A model and what has been said to it. `ask` adds a question and returns the answer."""

    loaded: object
    decoding: Decoding = field(default_factory=Decoding)
    dialogue: Dialogue = field(default_factory=Dialogue)
    encoded_videos: int = 0
    """Media that went through the tower so far; each does so once."""
    times: Times = field(default_factory=Times)
    """Of the last answer, and of the media that were shown since the one before it."""

    def __post_init__(self):
        self._media, self._parts, self._encoded, self._memory = [], [], None, None

    @property
    def media(self) -> list:
        """The decoded media of the dialogue."""
        return list(self._media)

    @property
    def encoded(self) -> EncodedMedia | None:
        """The dialogue's media as the language model reads them, with their cuts."""
        return self._encoded

    def cuts_of(self, place: int) -> Cuts:
        """How a medium of the dialogue is cut. It is encoded now if it was not."""
        self.encode()
        return self._parts[place].cuts

    def see(self, path: str, mark: str | None = None) -> None:
        """Show an image or a video with the next question. It is decoded now, so that errors come now.

        `mark` says which of both it is; by default its name does. Raises as the processor's `load`.
        """
        dialogue = self.dialogue.see(path, mark)
        mark, started = dialogue.waiting[-1][0], time.perf_counter()
        medium = self.loaded.processor.load(mark, path)
        self._fresh_times().add("decode", time.perf_counter() - started)
        self.dialogue, self._media = dialogue, [*self._media, medium]
        self._encoded = None

    def adopt(self, path: str, medium, encoded: EncodedMedia) -> None:
        """Show a medium with the next question that has been decoded and encoded before."""
        self.encode()
        self.dialogue = self.dialogue.see(path, medium.mark)
        self._media, self._parts, self._encoded = [*self._media, medium], [*self._parts, encoded], None

    def take_back(self, kept: int) -> None:
        """Forget the media behind the first `kept` that still wait for a question."""
        for place in reversed(range(max(kept, len(self.dialogue.media)), len(self._media))):
            self._drop(place)

    def clear(self) -> None:
        """Begin anew: no turn, no medium, nothing remembered."""
        self.dialogue, self.times = Dialogue(), Times()
        self._media, self._parts, self._encoded, self._memory = [], [], None, None

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> str:
        """The answer to a question; `on_text` receives its pieces as they come.

        `stop` is asked after every token. What was said until then is the answer; where nothing was, the
        question has not been asked. TooLong where the model has no room for an answer; where it has room for
        less than `max_new_tokens`, the answer is at most as long as fits.
        """
        dialogue = self.dialogue.say(question)
        answer = self._generate(dialogue, on_text, stop)
        if answer or not self.times.stopped:
            self.dialogue = dialogue.say(answer or "(no answer)")
        return answer

    @torch.no_grad()
    def encode(self) -> EncodedMedia | None:
        """The dialogue's media as the language model reads them; only what is new goes through the tower.

        RuntimeError for a medium that cannot be encoded, for want of memory above all. It is then shown no
        longer: the next question is asked without it.
        """
        for place in range(len(self._parts), len(self._media)):
            try:
                self._parts.append(self._encode_one(self._media[place]))
            except Exception as error:
                path = self._drop(place)
                raise RuntimeError(
                    f"{path} could not be encoded and is not shown any longer: {error}"
                ) from error
            self.encoded_videos += 1
        if self._parts and self._encoded is None:
            self._encoded = join_encoded(self._parts)
        return self._encoded

    def _encode_one(self, medium) -> EncodedMedia:
        model, kinds = self.loaded.model, [medium.is_video] * len(medium.frames)
        pixels, clock = medium.pixels.to(model.device), medium.times.to(model.device)
        with timed_parts(model, self._fresh_times()):
            return model.encode_media(Media(pixels, clock, medium.frames, kinds))

    def _drop(self, place: int) -> str:
        """Forget a medium that waits for a question; its path."""
        assert place >= len(self.dialogue.media), "what was asked about has been encoded"
        waiting = list(self.dialogue.waiting)
        _, path = waiting.pop(place - len(self.dialogue.media))
        self.dialogue = replace(self.dialogue, waiting=tuple(waiting))
        del self._media[place], self._parts[place : place + 1]
        self._encoded = None
        return path

    def _fresh_times(self) -> Times:
        """The times of the answer to come: those of the last one are over when something new begins."""
        if self.times.new_tokens:
            self.times = Times()
        return self.times

    def _generate(self, dialogue: Dialogue, on_text, stop) -> str:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        self._fresh_times()
        ids = self._prompt(dialogue)
        if len(ids) >= self.loaded.context_length:
            raise TooLong(len(ids), self.loaded.context_length)
        encoded = self.encode()
        streamer = Pieces(tokenizer, on_text) if on_text and self.decoding.num_beams == 1 else None
        out = self._answer(dialogue, ids, encoded, streamer, Watch(self.times, model.device, stop))
        text = decoded(tokenizer, out[len(ids) :])
        if on_text and streamer is None and text:
            on_text(text)
        return text

    def _prompt(self, dialogue: Dialogue) -> list[int]:
        """Ids of the dialogue. Its pixels are not needed, and a long video's need not be copied for it."""
        light = [replace(medium, pixels=medium.pixels[:0]) for medium in self._media]
        return self.loaded.processor.encode_turns(dialogue.turns, light, generation=True)["input_ids"]

    def _answer(self, dialogue: Dialogue, ids: list[int], encoded, streamer, watch: Watch) -> list[int]:
        """Ids of prompt and answer. What the model has read of the prompt before, it does not read again.

        While it reads, the session remembers nothing: whatever ends it, no half-read memory is left.
        """
        processor, model = self.loaded.processor, self.loaded.model
        batch = processor.batch([{"input_ids": ids}]).to(model.device)
        memory, self._memory = self._memory or Memory.empty(model.config), None
        kept = memory.before(ids) if self.decoding.num_beams == 1 else 0
        cache = memory.cut(kept) if kept else Memory.empty(model.config).cache
        self.times.prompt_tokens, self.times.kept_tokens = len(ids), kept
        most = min(self.decoding.max_new_tokens, self.loaded.context_length - len(ids))
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self._seed(dialogue))
            out = model.generate(
                **batch,
                encoded_media=encoded,
                past_key_values=cache,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([watch]),
                eos_token_id=processor.stop_ids,
                pad_token_id=processor.pad_id,
                **self.decoding.arguments() | {"max_new_tokens": most},
            )
        told = out[0].tolist()
        if self.decoding.num_beams == 1:
            self._memory = Memory.of(told, cache)
        return told

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
