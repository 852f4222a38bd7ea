"""What may be uploaded: told by content, bounded, refused in words that hold neither path nor error."""

import io

import pytest
from PIL import Image
from tiny_world import videos

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.serve.uploads import Refused, UploadLimits, check_upload
from quicksviewer.utils.data_util import MediaLimits

BOTH = (VIDEO_MARK, IMAGE_MARK)


def picture(width=32, height=16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def clip(tiny) -> bytes:
    return videos(tiny)[0].read_bytes()


def check(path, allowed=BOTH, **limits) -> str:
    return check_upload(str(path), allowed, UploadLimits(**limits), MediaLimits())


def test_the_kind_is_told_by_content_not_by_name(tmp_path, clip):
    (tmp_path / "a.png").write_bytes(clip)
    (tmp_path / "b.mp4").write_bytes(picture())
    assert check(tmp_path / "a.png") == VIDEO_MARK and check(tmp_path / "b.mp4") == IMAGE_MARK


@pytest.mark.parametrize(
    ("content", "limits", "words"),
    [
        (b"", {}, "This is not an mp4"),
        (b"hello", {}, "This is not an mp4"),
        (b"#EXTM3U\nhttp://127.0.0.1/x\n", {}, "This is not an mp4"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, "This is not an mp4"),
        ("clip", {"max_bytes": 2**10}, "larger than the 0 MB"),
        ("clip", {"max_seconds": 1.5}, "longer than the 1.5 seconds"),
        ("clip", {"max_pixels": 100}, "megapixels"),
        ("half a clip", {}, "damaged"),
        ("picture", {"max_pixels": 100}, "megapixels"),
        ("half a picture", {}, "damaged"),
    ],
)
def test_what_is_refused_and_how(tmp_path, clip, content, limits, words):
    known = {"clip": clip, "half a clip": clip[: len(clip) // 2], "picture": picture()}
    known["half a picture"] = picture(300, 300)[:-40]
    path = tmp_path / "secret-name.bin"
    path.write_bytes(known.get(content, content))
    with pytest.raises(Refused, match=words) as refused:
        check(path, **limits)
    told = str(refused.value)
    assert "secret" not in told and str(tmp_path) not in told and "Error" not in told


def test_only_what_is_asked_for(tmp_path, clip):
    (tmp_path / "a").write_bytes(clip)
    (tmp_path / "b").write_bytes(picture())
    with pytest.raises(Refused, match=r"not an mp4, mov, mkv, webm or avi video\.$"):
        check(tmp_path / "b", (VIDEO_MARK,))
    with pytest.raises(Refused, match="not a JPEG|not an? .* image"):
        check(tmp_path / "a", (IMAGE_MARK,))


@pytest.mark.parametrize("name", ["max_bytes", "max_seconds", "max_pixels"])
def test_limits_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        UploadLimits(**{name: 0})
