"""Archives are read member by member, here and elsewhere; one that could reach out of itself is refused."""

import io
import os
import pickle
import tarfile

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from torch.utils.data import DataLoader

from quicksviewer.utils import array_file, stores
from quicksviewer.utils.array_file import CACHE_VARIABLE
from quicksviewer.utils.data_util import MediaError, MediaLimits
from quicksviewer.utils.tar_shard import TarShard

MEMBERS = {"a.json": b'{"uid": "a"}', "a.mp4": b"\0" * 5000, "d/Straße 東.jpg": b"xyz", "d/empty.txt": b""}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def member(name: str, data: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def archive(members, format=tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def whole(format=tarfile.PAX_FORMAT) -> bytes:
    return archive([member(*item) for item in MEMBERS.items()], format)


def settled(path):
    """A file that was changed long ago: only of such a one the index is kept."""
    os.utime(path, (1e9, 1e9))
    return path


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_read_by_name(tmp_path, format):
    (tmp_path / "a.tar").write_bytes(whole(format))
    shard = TarShard(tmp_path / "a.tar")
    assert [shard.names[row] for row in range(len(shard))] == list(MEMBERS)
    assert {name: shard.read(name) for name in MEMBERS} == MEMBERS
    assert "a.mp4" in shard and "b.mp4" not in shard and shard.num_bytes("a.mp4") == 5000
    with pytest.raises(KeyError, match="no member"):
        shard.read("../a.mp4")
    copy = pickle.loads(pickle.dumps(shard))
    assert copy.read("a.json") == MEMBERS["a.json"] and copy.digest == shard.digest
    assert os.listdir(tmp_path) == ["a.tar"], "nothing was extracted"


def test_an_archive_elsewhere_is_the_same(tmp_path):
    (tmp_path / "a.tar").write_bytes(whole())
    fsspec.filesystem("memory").pipe("/bucket/a.tar", whole())
    near, far = TarShard(tmp_path / "a.tar"), TarShard("memory://bucket/a.tar")
    assert far.digest == near.digest and {name: far.read(name) for name in MEMBERS} == MEMBERS
    fsspec.filesystem("memory").pipe("/bucket/a.tar", archive([member("b.json", b"{}")]))
    assert "b.json" in TarShard("memory://bucket/a.tar"), "an index of what was there before"
    with pytest.raises(MediaError, match=r"none\.tar"):
        TarShard("memory://bucket/none.tar")


def test_only_the_members_asked_for_are_fetched(monkeypatch):
    fsspec.filesystem("memory").pipe("/bucket/b.tar", whole())
    shard, asked = TarShard("memory://bucket/b.tar"), []
    system = shard._files.system
    cat = type(system).cat_file
    monkeypatch.setattr(
        type(system),
        "cat_file",
        lambda self, path, start, end: asked.append(end - start) or cat(self, path, start, end),
    )
    shard.read("a.json"), shard.read("d/empty.txt")
    assert asked == [len(MEMBERS["a.json"])]


class Cloud(AsyncFileSystem):
    """An object storage as fsspec has them: its loop of events refuses to work behind a fork."""

    protocol = "cloud"
    objects: dict[str, bytes] = {}
    infos: list[str] = []

    async def _info(self, path, **kwargs):
        self.infos.append(path)
        path = self._strip_protocol(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        return self.objects[self._strip_protocol(path)][start:end]

    def _open(self, path, mode="rb", **kwargs):
        return io.BytesIO(self.cat_file(path))


@pytest.fixture
def cloud(monkeypatch):
    fsspec.register_implementation("cloud", Cloud, clobber=True)
    monkeypatch.setattr(Cloud, "objects", {"bucket/a.tar": whole(), "bucket/b.tar": whole()})
    monkeypatch.setattr(Cloud, "infos", [])
    for memory in (stores._open, stores._stamps):
        memory.clear()
    return "cloud://bucket/{}.tar"


class Members:
    """Bytes of the members of an archive, as rows of a data set."""

    def __init__(self, url: str):
        self.url = url

    def __len__(self) -> int:
        return len(MEMBERS)

    def __getitem__(self, index: int) -> bytes:
        return stores.StoredPath(self.url, list(MEMBERS)[index]).load()


def test_workers_read_object_storage_that_was_opened_before_the_fork(cloud):
    data = Members(cloud.format("a"))
    expected = [data[index] for index in range(len(data))]
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == expected == list(MEMBERS.values())


def test_opening_again_neither_asks_nor_reads(cloud, monkeypatch):
    """Beyond MAX_OPEN archives are opened again and again."""
    monkeypatch.setattr(stores, "MAX_OPEN", 1)
    one, other = (cloud.format(name) for name in "ab")
    stores.open_store(one), stores.open_store(other)
    asked, arrays = len(Cloud.infos), []
    monkeypatch.setattr(array_file, "_array", _noting(arrays, array_file._array))
    for _ in range(3):
        for url in (one, other):
            assert stores.open_store(url).read("a.json") == MEMBERS["a.json"]
    assert len(Cloud.infos) == asked and arrays and all(arrays), "some CRC was computed"


def _noting(notes: list[bool], function):
    """The function, which notes whether its array went unchecked."""

    def noted(block, first, name, row, unchecked):
        notes.append(unchecked)
        return function(block, first, name, row, unchecked)

    return noted


def test_the_index_is_kept_until_the_archive_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(whole())
    walks, walk = [], TarShard._walk
    monkeypatch.setattr(TarShard, "_walk", lambda self: walks.append(1) or walk(self))
    for _ in range(3):
        assert TarShard(settled(path)).read("a.json") == MEMBERS["a.json"]
    assert len(walks) == 1
    path.write_bytes(archive([member("a.json", b"[]")]))
    assert TarShard(path).read("a.json") == b"[]" and len(walks) == 2


REFUSED = {
    "symbolic link": member("a.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": member("a.mp4", type=tarfile.LNKTYPE, linkname="x"),
    "device": member("a.mp4", type=tarfile.CHRTYPE),
    "pipe": member("a.mp4", type=tarfile.FIFOTYPE),
    "climbs": member("a/../../b.mp4", b"x"),
    "from the root": member("/etc/a.mp4", b"x"),
    "twice": member("x", b"again"),
    "endless": member("n" * 5000, b"x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_reach_out_is_refused(tmp_path, case):
    path = tmp_path / "a.tar"
    path.write_bytes(archive([member("x", b"y"), REFUSED[case]]))
    with pytest.raises(MediaError, match="only plain files|a name may not|said twice"):
        TarShard(path)


def test_a_folder_in_an_archive_is_no_member(tmp_path):
    (tmp_path / "a.tar").write_bytes(archive([member("d", type=tarfile.DIRTYPE), member("d/x", b"y")]))
    assert len(TarShard(tmp_path / "a.tar")) == 1


def test_damage_is_noticed(tmp_path):
    path, data = tmp_path / "a.tar", whole()
    header = data.index(b"a.mp4")
    cases = {
        "cut in a member": data[: header + 2000],
        "cut between members": data[:header],
        "cut in a header": data[: header + 100],
        "header changed": data[: header + 5] + b"!" + data[header + 6 :],
        "not an archive": b"RIFF" + b"x" * 2000,
        "nothing": b"",
    }
    for case, letters in cases.items():
        path.write_bytes(letters)
        with pytest.raises(MediaError, match="damaged archive|truncated"):
            TarShard(path)
            pytest.fail(case)
    path.write_bytes(data)
    shard = TarShard(path)
    path.write_bytes(data[: header + 1000])
    with pytest.raises(MediaError, match="has changed"):
        shard.read("a.mp4")


def test_a_large_member_is_not_taken_into_memory(tmp_path):
    (tmp_path / "a.tar").write_bytes(whole())
    shard = TarShard(tmp_path / "a.tar", MediaLimits(max_memory_bytes=1000))
    with pytest.raises(MediaError, match="the limit is 1000"):
        shard.read("a.mp4")
