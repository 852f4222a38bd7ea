"""The loops of seed 003, word for word, over several epochs: the loss falls, what they save loads again."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "compat"))
from blocks import Document, compat_on_path, run

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


def test_the_config_that_the_seed_names_is_the_shipped_one():
    from quicksviewer.data.pipeline import PipelineConfig

    root = Path(__file__).resolve().parents[3]
    named = PipelineConfig.load(root / "compat/config/vqa_config.yaml")
    assert named == PipelineConfig.load(root / "configs/pipeline/vqa.yaml")
