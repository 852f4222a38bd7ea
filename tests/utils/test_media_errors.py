import io
import os
import pickle

import numpy as np
import pytest
from clip_files import write_clip, write_sound
from PIL import Image

from quicksviewer.utils.data_util import MediaError, MediaLimits, load_image, open_video, read_video
from quicksviewer.utils.media import IMAGE_KINDS, VIDEO_KINDS, sniff

# Videos that are none


def missing(path):
    return path


def with_content(content: bytes):
    def write(path):
        path.write_bytes(content)
        return path

    return write


def a_folder(path):
    path.mkdir()
    return path


def a_pipe(path):
    os.mkfifo(path)
    return path


def cut(name, share, **how):
    def write(path):
        whole = write_clip(path.with_name(name), gop=5, **how)
        data = whole.read_bytes()
        whole.write_bytes(data[: int(len(data) * share)])
        return whole

    return write


def without_frames(name):
    return lambda path: write_clip(path.with_name(name), codec="mpeg4", count=0)


FAST = {"movflags": "faststart"}
NO_VIDEO = {
    "missing": (missing, "no such file"),
    "empty": (with_content(b""), "is empty"),
    "folder": (a_folder, "is a directory"),
    "pipe": (a_pipe, "not a regular file"),
    "text": (with_content("é, only words\n".encode() * 50), "is text; accepted are mp4, matroska, avi"),
    "playlist": (with_content(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hosts\n"), "is playlist"),
    "concat": (with_content(b"ffconcat version 1.0\nfile a.mp4\n"), "is playlist"),
    "picture": (with_content(b"\xff\xd8\xff\xe0" + bytes(600)), "is JPEG"),
    "zeros": (with_content(bytes(600)), r"unknown content \(00 00"),
    "only a start": (with_content(b"\0\0\0\x18ftypisom" + bytes(12)), "without a moov box"),
    "only an ebml start": (with_content(b"\x1a\x45\xdf\xa3\x83abc"), "nothing behind it"),
    "sound": (write_sound, "no video stream; found audio"),
    "no frames": (without_frames("film.avi"), "holds a mpeg4 stream, but no frame in it can be decoded"),
    "no track": (without_frames("film.mp4"), "no video stream; found nothing"),
    "cut mp4": (cut("cut.mp4", 0.6), "truncated: its mdat box ends at byte"),
    "cut mp4, index first": (cut("fast.mp4", 0.8, muxing=FAST), "truncated: its mdat box"),
    "cut inside the index": (cut("index.mp4", 0.97), "truncated: its moov box"),
    "cut mkv": (cut("cut.mkv", 0.6), "truncated: its segment"),
    "cut avi": (cut("cut.avi", 0.6, codec="mpeg4"), "truncated: its RIFF"),
}


@pytest.mark.parametrize("case", NO_VIDEO)
def test_what_is_no_video_is_told_so(tmp_path, case):
    make, reason = NO_VIDEO[case]
    path = make(tmp_path / "film.mp4")
    with pytest.raises(MediaError, match=reason) as caught:
        read_video(path, 1.0, 4)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


def spoil(path, share=0.5, size=600):
    """Overwrite some bytes of a file in place."""
    data = bytearray(path.read_bytes())
    at = int(len(data) * share)
    data[at : at + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_in_the_middle_is_an_error_only_on_the_way(tmp_path, codec):
    how = {"muxing": FAST, "gop": 30, "options": {"bf": "0"}}
    path = spoil(write_clip(tmp_path / "spoilt.mp4", count=120, codec=codec, **how), share=0.6)
    with open_video(path) as video:
        assert video.frames_at([0.01]).shape == (1, 48, 64, 3)
        with pytest.raises(MediaError, match="damaged"):
            video.frames_at([k / 30 for k in range(120)])


def test_a_cut_that_leaves_the_structure_whole_is_noticed(tmp_path):
    whole = write_clip(tmp_path / "live.mkv", count=120, gop=30, muxing={"live": "1"})
    fast = write_clip(tmp_path / "fast.mp4", count=120, gop=30, muxing=FAST)
    data = fast.read_bytes()
    at = data.index(b"mdat")
    cut_data = data[: at + (len(data) - at) // 3]
    fast.write_bytes(cut_data[: at - 4] + (0).to_bytes(4) + cut_data[at:])  # "mdat lasts until the end"
    with open_video(whole) as video:
        assert video.frames_at([3.9]).shape[0] == 1
    with pytest.raises(MediaError, match="damaged"), open_video(fast) as video:
        video.frames_at([3.9])


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_pixels": 64 * 48 - 1}, "64x48 is 3072 pixels, the limit is 3071"),
        ({"max_seconds": 0.9}, "lasts 1.0 s, the limit is 0.9 s"),
        ({"max_bytes": 100}, "bytes, the limit is 100"),
        ({"max_decoded_bytes": 64 * 48 * 3 * 3 - 1}, "3 frames of 64x48 take 27648 bytes"),
    ],
)
def test_limits_of_videos(tmp_path, limit, reason):
    path = write_clip(tmp_path / "clip.mp4")
    with pytest.raises(MediaError, match=reason):
        read_video(path, 3.0, 8, limits=MediaLimits(**limit))


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="max_seconds must be positive, got 0"):
        MediaLimits(max_seconds=0)


def test_an_error_crosses_processes():
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is empty", "a.mp4: is empty")


# Pictures


def picture(size=(40, 30), mode="RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_pictures_are_told_by_content(tmp_path, kind):
    data = encoded(picture(), kind)
    path = tmp_path / "picture.txt"
    path.write_bytes(data)
    loaded = load_image(path)
    assert (loaded.mode, loaded.size) == ("RGB", (40, 30))
    assert (
        loaded.tobytes()
        == load_image(data).tobytes()
        == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    )


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused(kind, share):
    data = encoded(picture((200, 150)), kind)
    with pytest.raises(MediaError, match=f"<bytes>: damaged {kind}"):
        load_image(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"<svg/>", "is text"), (b"\0\0\0\x18ftypheic", "is HEIF image")],
)
def test_what_is_no_picture_is_told_so(tmp_path, content, reason):
    with pytest.raises(MediaError, match=reason):
        load_image(content)
    with pytest.raises(MediaError, match="no such file"):
        load_image(tmp_path / "none.png")


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image = picture()
    turned = load_image(encoded(image, "PNG", exif=exif))
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    clear.putpixel((1, 0), (0, 0, 0, 0))
    assert np.asarray(load_image(encoded(clear, "PNG"))).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    palette = clear.quantize(4)
    assert load_image(encoded(palette, "PNG")).getpixel((1, 0)) == (255, 255, 255)


def test_of_a_gif_the_first_frame():
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    gif = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert load_image(gif).getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bits_of_grey_keep_their_range():
    grey = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    assert np.asarray(load_image(encoded(grey, "PNG")))[0, :, 0].tolist() == [0, 128, 255]


def test_limits_of_pictures():
    header = bytearray(encoded(picture(), "BMP"))
    header[18:26] = (20_000).to_bytes(4, "little") * 2  # claims a size that it does not hold
    with pytest.raises(MediaError, match="400000000 pixels"):
        load_image(bytes(header))
    with pytest.raises(MediaError, match="40x30 is 1200 pixels, the limit is 1000"):
        load_image(encoded(picture(), "PNG"), MediaLimits(max_pixels=1000))
    with pytest.raises(MediaError, match="bytes, the limit is 50"):
        load_image(encoded(picture(), "PNG"), MediaLimits(max_bytes=50))


def test_a_letter_cut_in_two_is_still_text():
    assert sniff("äöü".encode()[:5]) == "text"
    assert sniff(b"\xfe\xff" * 20) not in ("text", *VIDEO_KINDS)
