"""The loops of seed 003, word for word, over several epochs: the loss falls, what they save loads again."""

import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "compat"))
from blocks import COMPAT, Document, compat_on_path, run
from picture_world import write_jsonl

from quicksviewer.data.pipeline import PipelineConfig

SEED = Document("003_models_loader.md")


@pytest.fixture
def words(world, write_config, tmp_path):
    """What a machine without downloads and without a GPU says in their place."""
    return {
        "config/vqa_config.yaml": str(write_config(dataloader={"batch_size": 8})),
        "Salesforce/blip-vqa-base": str(world / "blip"),
        "checkpoints/blip_vqa_finetuned": str(tmp_path / "blip_vqa_finetuned"),
        '"cuda"': '"cpu"',
        "'cuda'": "'cpu'",
    }


def test_the_short_loop_makes_one_step_of_the_loss(words):
    with compat_on_path():
        names = run(SEED, SEED.block("完整示例"), words)
    assert names["loss"].requires_grad and names["loss"].item() > 0
    assert {"pixel_values", "input_ids", "attention_mask", "labels"} <= set(names["batch"])
    assert (names["batch"]["labels"] == -100).any()  # answers of different length, padded


def test_the_training_loop_learns_and_its_checkpoint_loads(words, capsys, tmp_path):
    words |= {"lr=3e-5": "lr=3e-3", "range(3)": "range(8)"}
    with compat_on_path():
        names = run(SEED, SEED.block("完整训练示例"), words)
        means = [float(mean) for mean in re.findall(r"平均损失: ([\d.]+)", capsys.readouterr().out)]
        assert len(means) == 8 and means[-1] < 0.5 * means[0]
        from models import load_model_from_path

        again = load_model_from_path(str(tmp_path / "blip_vqa_finetuned"), device="cpu")
    before, after = names["model"].state_dict(), again.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    assert not any(p.requires_grad for p in names["model"].vision_model.parameters())


@pytest.fixture
def beside_the_config(world, rows, tmp_path, monkeypatch):
    """A folder as the head of the shipped file wants it: the file, its data, the model of the seed."""
    shutil.copytree(COMPAT / "config", tmp_path / "config")
    for name in ("train", "test", "more"):
        shutil.copytree(world / "pictures", tmp_path / "output/easy_vqa" / name)
    named = [row | {"image": f"{name}/{row['image']}"} for row in rows for name in ("train", "more")]
    write_jsonl(tmp_path / "output/easy_vqa/train.jsonl", named)
    write_jsonl(tmp_path / "output/easy_vqa/test.jsonl", named[:4])
    (tmp_path / "Salesforce").mkdir()
    (tmp_path / "Salesforce/blip-vqa-base").symlink_to(world / "blip")
    monkeypatch.chdir(tmp_path)


def test_the_seed_runs_with_the_config_that_is_shipped_for_it(beside_the_config):
    with compat_on_path():
        names = run(SEED, SEED.block("完整示例"), {"'cuda'": "'cpu'", '"cuda"': '"cpu"'})
    assert names["pipeline"].config == PipelineConfig.load(COMPAT / "config/vqa_config.yaml")
    assert names["pipeline"].config.tokenizer.name == names["model"].name_or_path
    assert names["loss"].requires_grad and names["loss"].item() > 0
    assert set(names["pipeline"].datasets) == {"train", "validation", "test"}


@pytest.mark.parametrize("lost", ["output", "Salesforce"])
def test_what_the_shipped_config_lacks_is_told(beside_the_config, lost, tmp_path):
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    message = {
        "output": f"no data at output/easy_vqa/train.jsonl in {tmp_path}; it is made by python -m "
        "quicksviewer.data.easy_vqa",
        "Salesforce": f"there is no folder at Salesforce/blip-vqa-base in {tmp_path}. From the hub: ",
    }
    with compat_on_path(), pytest.raises(ValueError, match=message[lost]):
        run(SEED, SEED.block("完整示例"), {"'cuda'": "'cpu'", '"cuda"': '"cpu"'})
