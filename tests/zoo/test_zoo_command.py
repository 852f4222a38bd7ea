"""quicksviewer zoo: list, info, load."""

import pytest

from quicksviewer.zoo.command import main
from quicksviewer.zoo.registry import MODEL_REGISTRY


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_list_has_every_task_and_its_class(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    wanted = [
        (task, target.split(":")[1]) for tasks in MODEL_REGISTRY.values() for task, target in tasks.items()
    ]
    assert [tuple(row[2:]) for row in rows] == wanted
    assert [row[0] for row in rows if row[0]] == list(MODEL_REGISTRY)


def test_info_reads_without_loading(checkpoint, loaded, capsys):
    folder = checkpoint("qwen2_5_vl", "vqa")
    numbers = sum(p.numel() for p in loaded("qwen2_5_vl", "vqa")["model"].parameters())
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Qwen2_5_VLForConditionalGeneration" in shown and f"{numbers:,} numbers" in shown


@pytest.mark.parametrize("bits", [[], ["--4bit"]])
def test_load_takes_the_task_from_the_checkpoint_and_asks(bits, checkpoint, pictures, capsys):
    folder = str(checkpoint("blip", "image_text_retrieval"))
    assert main(["load", folder, "--device", "cpu", *bits, "--image", str(pictures[0]), "--text", "red"]) == 0
    shown = capsys.readouterr().out
    assert "blip, image_text_retrieval, loaded in" in shown and "that they belong together" in shown
    assert ("layers quantised" in shown) == bool(bits)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["load", "nowhere"], 1, "nowhere is neither a folder nor a model"),
        (["info", "nowhere"], 1, "nowhere is neither a folder nor a model"),
        (["load", "CHECKPOINT", "--model-type", "clip"], 1, "belongs to 'blip', not to 'clip'"),
        (["load", "CHECKPOINT", "--image", "nowhere.png", "--text", "x"], 1, "nowhere.png"),
        (["load", "CHECKPOINT", "--image", "a.png"], 2, "--image and --text belong together"),
        (["load", "CHECKPOINT", "--task", "vaq"], 1, "Did you mean 'vqa'"),
    ],
    ids=lambda value: " ".join(value[2:]) or value[0] if isinstance(value, list) else None,
)
def test_what_goes_wrong_is_one_line(words, code, message, checkpoint, capsys):
    words = [str(checkpoint("blip", "vqa")) if word == "CHECKPOINT" else word for word in words]
    assert main(words) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_a_damaged_weight_file_is_named(checkpoint, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((checkpoint("blip", "vqa") / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert main(["info", str(tmp_path)]) == 1
    assert "model.safetensors is a damaged weight file" in capsys.readouterr().err


def test_no_word_is_wrong_usage():
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
