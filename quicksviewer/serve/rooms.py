"""Visitors of the page: a conversation for each, not too many, and none for longer than it is used."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quicksviewer.serve.session import ChatSession
from quicksviewer.serve.uploads import Refused


@dataclass(frozen=True, kw_only=True)
class RoomLimits:
    """How much state visitors may hold."""

    max_rooms: int = 8
    idle_seconds: float = 1800
    max_media: int = 8
    max_turns: int = 40
    """Questions of one conversation."""
    max_question: int = 4000
    """Characters."""

    def __post_init__(self):
        bounds = (self.max_rooms, self.idle_seconds, self.max_media, self.max_turns, self.max_question)
        if min(bounds) <= 0:
            raise ValueError(f"limits of rooms must be positive, got {self}")


@dataclass
class Room:
    """One visitor's conversation and uploaded files."""

    session: ChatSession
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the answer that is coming is to end."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while something is done for this visitor: one thing at a time."""
    files: set[Path] = field(default_factory=set)
    messages: list[dict] = field(default_factory=list)
    """The conversation as the page shows it."""
    used: float = field(default_factory=time.monotonic)

    def empty(self, keep: set[Path]) -> None:
        """End the answer that is coming; forget the conversation, delete its files but those to keep."""
        self.stop.set()
        with self.lock:
            self.session.clear()
            self.messages.clear()
            for file in self.files - keep:
                file.unlink(missing_ok=True)
            self.files.clear()


class Rooms:
    """Rooms by the key of their visitor. All methods may be called from any thread."""

    def __init__(self, make_session: Callable[[], ChatSession], limits: RoomLimits):
        self.make_session, self.limits = make_session, limits
        self._rooms: dict[str, Room] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rooms)

    def enter(self, key: str) -> Room:
        """The visitor's room, a new one if need be. Refused when all are taken by others."""
        self.sweep()
        with self._lock:
            if key not in self._rooms:
                if len(self._rooms) >= self.limits.max_rooms:
                    raise Refused("All places are taken. Please try again in a few minutes.")
                self._rooms[key] = Room(self.make_session())
            room = self._rooms[key]
            room.used = time.monotonic()
            return room

    def find(self, key: str) -> Room | None:
        return self._rooms.get(key)

    def leave(self, key: str) -> None:
        """Free a visitor's room, at once and whatever is done there."""
        with self._lock:
            room = self._rooms.pop(key, None)
            shared = set().union(*(other.files for other in self._rooms.values()))  # equal uploads are one
        if room is not None:
            room.empty(shared)

    def sweep(self) -> None:
        """Free the rooms that nobody has used for long. A room in which something is done is used."""
        oldest = time.monotonic() - self.limits.idle_seconds
        for key, room in list(self._rooms.items()):
            if room.used < oldest and not room.lock.locked():
                self.leave(key)

    def close(self) -> None:
        """Free all."""
        for key in list(self._rooms):
            self.leave(key)
