"""What the doctor finds, and that it ends with 1 exactly when something needed is missing."""

from importlib import metadata

import pytest

from quicksviewer.utils import doctor, landlock
from quicksviewer.utils.doctor import Finding, Requirement


def test_this_machine_can_run(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for name in ("python", "torch", "transformers", "deepspeed", "av", "cores", "memory", "extra video"):
        assert f" {name} " in out


def test_a_missing_package_is_named_and_ends_with_one(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "read_requirements", lambda: [Requirement("no-such-package", ">=1")])
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "missing: no-such-package" in out
    assert "pip install 'no-such-package>=1'" in out


def test_a_version_outside_its_range_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.9")
    assert doctor.check_package(Requirement("thing", ">=1,<2")).state == "ok"
    assert doctor.check_package(Requirement("thing", ">=2")).state == "missing"


def test_an_extra_lacks_what_is_not_there_and_stops_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: {"a": "1"}.get(name))
    rows = doctor.check_extras(
        [Requirement("a", "", "x"), Requirement("b", "", "x"), Requirement("a", "", "y")]
    )
    assert rows == [
        Finding("extra x", "a 1, b -", "absent", "pip install 'quicksviewer[x]'"),
        Finding("extra y", "a 1"),
    ]


def test_a_broken_torchvision_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor.check_torchvision() == []
    monkeypatch.undo()
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(doctor.sys.modules, "torchvision", raising=False)
    (row,) = doctor.check_torchvision()
    assert row.state == "missing"
    assert "nms does not exist" in row.found
    assert "pip uninstall torchvision" in row.advice


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("av>=15", Requirement("av", ">=15")),
        ("transformers<6,>=5.17", Requirement("transformers", "<6,>=5.17")),
        ("torchvision; extra == 'gpu'", Requirement("torchvision", "", "gpu")),
        ('quicksviewer[dev] ; extra == "test"', Requirement("quicksviewer", "", "test")),
        ("decord>=0.6; platform_machine == 'made_up' and extra == 'video'", None),
    ],
)
def test_lines_of_the_metadata(line, expected):
    assert doctor._parse(line) == expected


def test_a_checkout_that_is_not_installed_declares_the_same(monkeypatch):
    installed = doctor.read_requirements()

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    names = {(r.name, r.extra) for r in doctor.read_requirements()}
    assert names == {(r.name, r.extra) for r in installed}


def test_the_memory_of_a_container_is_its_limit(tmp_path):
    limit = tmp_path / "memory.max"
    whole = doctor.memory_bytes(str(limit))
    limit.write_text("1048576\n")
    assert doctor.memory_bytes(str(limit)) == 1048576
    limit.write_text("max\n")
    assert doctor.memory_bytes(str(limit)) == whole


def test_the_ffmpeg_of_each_decoder_is_told_and_an_old_one_is_a_warning(monkeypatch):
    av = pytest.importorskip("av")
    monkeypatch.setattr(av, "library_versions", {"libavcodec": (62, 28, 102)})
    names = ["decord.libs/libavutil-1.so.56.22.100", "decord.libs/libavcodec-bc50294c.so.58.35.100"]
    monkeypatch.setattr(doctor, "_files_of", lambda name: [metadata.PackagePath(one) for one in names])
    ours, decord = doctor.check_ffmpeg()
    assert ours == Finding("ffmpeg of av", "libavcodec 62.28.102")
    assert (decord.what, decord.found, decord.state) == (
        *("ffmpeg of decord", "libavcodec 58.35.100"),
        "warning",
    )
    assert "--video_decoder av" in decord.advice
    monkeypatch.setattr(av, "library_versions", {"libavcodec": (61, 19, 101)})
    monkeypatch.setattr(doctor, "_files_of", lambda name: [])
    (old,) = doctor.check_ffmpeg()
    assert old.state == "warning" and "older than FFmpeg 8.1" in old.advice


def test_a_machine_that_cannot_shut_decoders_in_says_so(monkeypatch):
    monkeypatch.setattr(landlock, "version", lambda: 0)
    (row,) = doctor.check_sandbox()
    assert row.state == "warning" and "no Landlock" in row.advice
    monkeypatch.setattr(landlock, "version", lambda: 7)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    assert doctor.check_sandbox()[0].found == "network, programs, processes, changing files, reading files"
    monkeypatch.setattr(doctor.platform, "machine", lambda: "riscv64")
    assert doctor.check_sandbox()[0].found == "reading files"
