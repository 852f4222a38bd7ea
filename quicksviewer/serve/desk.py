"""What the page can do for its visitors, without the page: show, ask, stop, compare, clear.

Visitors are known by a key. One model serves all of them, one after the other. What goes wrong reaches a
visitor as `Refused`, in words of ours; errors are logged with an id, and the visitor is told the id alone.
"""

import queue
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from quicksviewer.constants import IMAGE_MARK, MARKS, MODEL_TOKENS, VIDEO_MARK
from quicksviewer.serve.compare import Cutting, compare
from quicksviewer.serve.cube_view import SeenVideo
from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.rooms import Room, RoomLimits, Rooms
from quicksviewer.serve.session import ChatSession, TooLong
from quicksviewer.serve.stages import until
from quicksviewer.serve.strip import cube_spans
from quicksviewer.serve.uploads import Refused, UploadLimits, check_upload
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

SWEEP_SECONDS = 60
"""How often conversations are looked for that nobody uses any longer."""


@dataclass(frozen=True, kw_only=True)
class DeskLimits:
    """How much visitors may ask for."""

    upload: UploadLimits = field(default_factory=UploadLimits)
    rooms: RoomLimits = field(default_factory=RoomLimits)
    answer_seconds: float = 120
    """An answer is ended after that; what has been said of it stays."""

    def __post_init__(self):
        if self.answer_seconds <= 0:
            raise ValueError(f"answer_seconds must be positive, got {self.answer_seconds}")


@contextmanager
def refusals() -> Iterator[None]:
    """Inside, every error but Refused is logged and becomes a Refused that tells an id."""
    try:
        yield
    except Refused as refused:
        if refused.__cause__:
            logger.warning("refused an upload: %s", refused.__cause__)
        raise
    except TooLong as error:
        raise Refused(
            f"This takes {error.tokens} tokens, and the model has room for {error.room}. Please begin a new "
            "conversation, or show a shorter video."
        ) from None
    except Exception as error:
        name = secrets.token_hex(4)
        logger.exception("page error %s", name)
        raise Refused(f"Something went wrong here. Reference: {name}") from error


class Desk:
    """All visitors' conversations with one model. Methods may be called from any thread."""

    def __init__(self, loaded, decoding: Decoding, limits: DeskLimits):
        """`loaded`: its processor is to decode in children (`isolation: process`)."""
        self.loaded, self.decoding, self.limits = loaded, decoding, limits
        self.rooms = Rooms(lambda: ChatSession(loaded, decoding), limits.rooms)
        self._model = threading.Lock()

    @property
    def kind(self) -> str:
        """The model's own way to cut."""
        return self.loaded.model.mm_config.cubing.kind

    def show(self, key: str, path: str, allowed: tuple[str, ...] = (VIDEO_MARK, IMAGE_MARK)) -> str:
        """Show an uploaded file with the visitor's next question; its mark. It is encoded now."""
        with refusals():
            room = self.rooms.enter(key)
            room.files.add(Path(path))
            with self._busy(room):
                if len(room.session.media) >= self.limits.rooms.max_media:
                    raise Refused("This conversation has seen enough files. Please begin a new one.")
                limits = self.loaded.processor.media_config.limits()
                mark = check_upload(path, allowed, self.limits.upload, limits)
                with self._model:
                    room.session.see(path, mark)
                    room.session.encode()
                return mark

    def take_back(self, key: str, kept: int) -> None:
        """Show the visitor's files behind the first `kept` no longer, where they wait for a question."""
        if room := self.rooms.find(key):
            with room.lock:
                room.session.take_back(kept)

    def seen_video(self, key: str) -> tuple[SeenVideo, object] | None:
        """The last video of the visitor's conversation, and its medium; None where there is none."""
        room = self.rooms.find(key)
        media = room.session.media if room else []
        places = [place for place, medium in enumerate(media) if medium.is_video]
        if not places:
            return None
        medium, processor = media[places[-1]], self.loaded.processor
        spans = cube_spans(room.session.cuts_of(places[-1]).cube_of_frame)
        end = medium.plan.end if medium.plan else float(medium.times[-1])
        start = medium.plan.start if medium.plan else 0.0
        seen = SeenVideo(
            times=medium.times.tolist(),
            spans=spans,
            seconds=end - start,
            tokens=processor.medium_length(medium.mark, len(medium.times)),
            tokens_per_cube=processor.mm_config.tokens_per_cube,
            patches=self.loaded.model.vision_tower.num_patches,
            has_thumbnail=processor.mm_config.thumbnail.enabled,
        )
        return seen, medium

    def check(self, key: str, question: str) -> None:
        """Refused where this could not be asked. Before files are shown with it."""
        with refusals():
            self._check_question(self.rooms.enter(key), question)

    def ask(self, key: str, question: str) -> Iterator[str]:
        """The pieces of an answer as they come. It ends early when it is stopped, when its time is over and
        when nobody listens any longer."""
        with refusals():
            room = self.rooms.enter(key)
            self._check_question(room, question)
            with self._busy(room):
                room.stop.clear()
                yield from self._stream(room, question)

    def stop(self, key: str) -> None:
        """End the answer that is coming to a visitor."""
        if room := self.rooms.find(key):
            room.stop.set()

    def clear(self, key: str) -> None:
        """Forget the visitor's conversation and delete their files."""
        self.rooms.leave(key)

    def compare(self, key: str, names: tuple[str, ...], question: str = "") -> list[Cutting]:
        """The visitor's last video cut by each of these methods; with a question, what is answered to it.
        Each answer ends early as one of `ask` does; behind a stop no other begins."""
        with refusals():
            room = self.rooms.enter(key)
            if question:
                self._check_question(room, question)
            if (seen := self.seen_video(key)) is None:
                raise Refused("Drop a video first.")
            with self._busy(room):
                room.stop.clear()
                limits = room.stop.is_set, self.limits.answer_seconds
                with self._model:
                    return compare(self.loaded, seen[1], names, question, self.decoding, *limits)

    @contextmanager
    def kept_tidy(self) -> Iterator[None]:
        """Inside, conversations that nobody uses any longer are freed; at the end all are."""
        over = threading.Event()

        def sweep():
            while not over.wait(SWEEP_SECONDS):
                self.rooms.sweep()

        threading.Thread(target=sweep, name="sweep", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            self.rooms.close()

    def _check_question(self, room: Room, question: str) -> None:
        limits = self.limits.rooms
        if not question.strip():
            raise Refused("Type a question first.")
        if len(question) > limits.max_question:
            raise Refused(f"A question may have {limits.max_question} characters.")
        if any(word in question for word in (*MARKS, *MODEL_TOKENS)):
            raise Refused("The question holds a word of the model's own format; please leave it out.")
        if len(room.session.dialogue.turns) >= 2 * limits.max_turns:
            raise Refused("This conversation is long enough. Please begin a new one.")

    @contextmanager
    def _busy(self, room: Room) -> Iterator[None]:
        """One thing at a time for each visitor."""
        if not room.lock.acquire(blocking=False):
            raise Refused("One thing at a time: please wait for the one before, or stop it.")
        try:
            yield
        finally:
            room.used = time.monotonic()
            room.lock.release()

    def _stream(self, room: Room, question: str) -> Iterator[str]:
        pieces, failed = queue.SimpleQueue(), []

        def work():
            try:
                with self._model:
                    stop = until(room.stop.is_set, self.limits.answer_seconds)
                    room.session.ask(question, pieces.put, stop)
            except BaseException as error:
                failed.append(error)
            finally:
                pieces.put(None)

        thread = threading.Thread(target=work, name="answer", daemon=True)
        thread.start()
        try:
            is_over = False
            while not is_over:
                text, is_over = _so_far(pieces)
                if text:
                    yield text
        finally:
            room.stop.set()  # also when whoever listened has gone
            thread.join()
        if failed:
            raise failed[0]


def _so_far(pieces: queue.SimpleQueue) -> tuple[str, bool]:
    """What has come by now, at least one piece, and whether that was the end, which is a None.

    A browser that is slower than the model thus sees longer pieces, and not later ones.
    """
    came = [pieces.get()]
    while came[-1] is not None and not pieces.empty():
        came.append(pieces.get())
    return "".join(piece for piece in came if piece is not None), came[-1] is None
