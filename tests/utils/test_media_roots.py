"""Which paths pass the gate: what a row names lies in its media root, whatever it is called (Sec9)."""

import base64
import os

import pytest
from clip_files import write_clip
from refusals import ALL_KINDS, encoded, refuse

from quicksviewer.utils import media_gate
from quicksviewer.utils.data_util import MediaError, MediaLimits, RootedPath, load_image, open_medium
from quicksviewer.utils.media import VIDEO_KINDS


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", count=8)


@pytest.fixture
def world(tmp_path, clip):
    """A media root with a film, and a secret film beside it: (root, secret)."""
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep/a.mp4").write_bytes(clip.read_bytes())
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip.read_bytes())
    (tmp_path / "root_of_others").mkdir()
    (tmp_path / "root_of_others/a.mp4").write_bytes(clip.read_bytes())
    (root / "out").symlink_to(tmp_path)
    (root / "out.mp4").symlink_to("../secret.mp4")
    (root / "absolute.mp4").symlink_to(secret)
    (root / "twice.mp4").symlink_to("out.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "inside.mp4").symlink_to("deep/a.mp4")
    os.link(secret, root / "hard.mp4")
    os.mkfifo(root / "pipe.mp4")
    return root, secret


ESCAPES = {
    "up": ("../secret.mp4", "'..'"),
    "up and down": ("deep/../../root/deep/a.mp4", "'..'"),
    "up inside": ("deep/../deep/a.mp4", "'..'"),
    "absolute": ("{secret}", "leads out of its media root"),
    "a neighbour with a longer name": ("{root}_of_others/a.mp4", "leads out"),
    "link to a folder": ("out/secret.mp4", "leads out"),
    "link to a file": ("out.mp4", "leads out"),
    "absolute link": ("absolute.mp4", "leads out"),
    "link to a link": ("twice.mp4", "leads out"),
    "endless link": ("loop.mp4", "too many levels|symbolic links"),
    "hard link": ("hard.mp4", "2 names"),
    "pipe": ("pipe.mp4", "not a regular file"),
    "folder": ("deep", "is a directory"),
    "root": ("", "is a directory"),
    "proc": ("/proc/self/environ", "not a stored file"),
    "descriptor": ("/proc/self/fd/0", "not a stored file"),
    "device": ("/dev/zero", "leads out"),
    "NUL": ("deep/a.mp4\0.png", "NUL"),
    "lone surrogate": ("\ud800.mp4", "no name of a file|no such file"),
    "dots that look alike": ("\u2024\u2024/secret.mp4", "no such file"),
    "full-width slash": ("..\uff0fsecret.mp4", "no such file"),
    "backslash": ("..\\secret.mp4", "no such file"),
    "percent": ("%2e%2e/secret.mp4", "no such file"),
    "file:": ("file:{secret}", "starts an address"),
    "file://": ("file://{secret}", "starts an address"),
    "concat:": ("concat:{secret}|{secret}", "starts an address"),
    "subfile,,": ("subfile,,start,0,end,9,,:{secret}", "no such file"),
    "http:": ("http://127.0.0.1:9/a.mp4", "starts an address"),
    "HTTPS:": ("HTTPS://127.0.0.1:9/a.mp4", "starts an address"),
    "pipe:": ("pipe:0", "starts an address"),
    "fd:": ("fd:", "starts an address"),
    "tilde": ("~/secret.mp4", "no such file"),
    "variable": ("$HOME/secret.mp4", "no such file"),
    "too long": ("a" * 5000, "name too long"),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_row_cannot_leave_its_root(world, case):
    root, secret = world
    path, reason = ESCAPES[case]
    path = path.format(root=root, secret=secret)
    refuse(lambda: open_medium(RootedPath(root, path), ALL_KINDS), reason)
    refuse(lambda: open_medium(path, ALL_KINDS, root=root), reason)


@pytest.mark.parametrize("path", ["deep/a.mp4", "./deep//a.mp4", "inside.mp4", "{root}/deep/a.mp4"])
def test_what_lies_in_the_root_is_found(world, path, clip):
    root, _ = world
    path = path.format(root=root)
    for ref in (RootedPath(root, path), RootedPath(f"{root}/", path)):
        with open_medium(ref, VIDEO_KINDS) as medium:
            assert medium.reader().read() == clip.read_bytes()
            assert medium.name == str(ref) and os.path.samefile(str(ref), root / path)


def test_a_root_may_be_a_link_and_hard_links_may_be_allowed(world):
    root, _ = world
    link = root.with_name("link")
    link.symlink_to(root)
    open_medium(RootedPath(link, "deep/a.mp4"), VIDEO_KINDS).close()
    open_medium(RootedPath(root, "hard.mp4"), VIDEO_KINDS, MediaLimits(max_links=2)).close()


def test_a_link_that_is_put_there_meanwhile_is_not_followed(world, monkeypatch):
    root, secret = world
    resolve = os.path.realpath

    def and_swap(path, **how):
        real = resolve(path, **how)
        if real.endswith("a.mp4"):
            (root / "deep/a.mp4").unlink(missing_ok=True)
            (root / "deep/a.mp4").symlink_to(secret)
        return real

    monkeypatch.setattr(media_gate.os.path, "realpath", and_swap)
    refuse(lambda: open_medium(RootedPath(root, "deep/a.mp4"), VIDEO_KINDS), "not a regular file")


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/stdin", "/proc/self/exe", "/sys/kernel/notes", "file:a.mp4"]
)
def test_what_a_user_types_may_lie_anywhere_but_must_be_stored(path):
    refuse(
        lambda: open_medium(path, ALL_KINDS), "not a stored file", "not a regular file", "starts an address"
    )


def test_a_typed_path_may_go_up_and_follow_links(world, monkeypatch):
    root, _ = world
    monkeypatch.chdir(root)
    for path in ("../secret.mp4", "out.mp4", "hard.mp4", "./deep/../deep/a.mp4"):
        open_medium(path, VIDEO_KINDS).close()


def test_a_rooted_path_is_a_text_that_survives_workers():
    import pickle

    path = pickle.loads(pickle.dumps(RootedPath("media", "a/b.mp4")))
    assert (path, path.root, path.path) == ("media/a/b.mp4", "media", "a/b.mp4")
    url = RootedPath("media", "data:image/png;base64," + base64.b64encode(encoded("PNG")).decode())
    assert load_image(url).size == (8, 8)


def test_a_refused_file_is_closed(world):
    root, _ = world
    before = len(os.listdir("/proc/self/fd"))
    for path, _ in ESCAPES.values():
        with pytest.raises(MediaError):
            open_medium(RootedPath(root, path.format(root=root, secret=root)), ALL_KINDS)
    assert len(os.listdir("/proc/self/fd")) == before
