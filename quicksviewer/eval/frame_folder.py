"""A video that is published as a folder of pictures, one for each frame at a known rate."""

from pathlib import Path

import PIL

from quicksviewer.utils.data_util import image_size
from quicksviewer.utils.media import IMAGE_KINDS, MediaError, MediaLimits, os_errors
from quicksviewer.utils.media_gate import open_medium
from quicksviewer.utils.stored_video import StoredVideo, decode_frames
from quicksviewer.utils.video import VideoInfo

SUFFIXES = (".jpg", ".jpeg", ".png")


class FrameFolder(str):
    """The path of such a folder, which stands wherever the path of a video does. Frames follow each other in
    the order of their names; frame i is on screen from second i / fps on."""

    def __new__(cls, path: str, fps: float):
        self = super().__new__(cls, path)
        self.fps = fps
        return self

    def __getnewargs__(self):
        return str(self), self.fps

    def open_frames(self, limits: MediaLimits) -> StoredVideo:
        """The pictures as a video. MediaError without the folder, or where it holds none."""
        with os_errors(self):
            frames = sorted(path for path in Path(self).iterdir() if path.suffix.lower() in SUFFIXES)
        if not frames:
            raise MediaError(self, f"holds no {', '.join(SUFFIXES)}")
        limits.check_pictures(self, len(frames))
        width, height = image_size(frames[0], limits)
        seconds = len(frames) / self.fps
        info = VideoInfo(
            self, seconds, len(frames), self.fps, width, height, "pictures", "pillow", PIL.__version__
        )

        def encoded(index: int) -> bytes:
            medium = open_medium(frames[index], IMAGE_KINDS, limits)
            with medium, medium.reader() as file:
                return file.read()

        return StoredVideo(
            info,
            limits,
            lambda indices: decode_frames(indices, (height, width), encoded, self, Path(self).name, limits),
        )
