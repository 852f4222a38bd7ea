"""Seed 003 (`models` with `data_pipeline`): every code block of the document, on tiny local checkpoints.

Replaced are names of models and pictures, and "cuda" by "cpu"; everything else runs as it is written.
"""

import json
import os
import re
import subprocess
import sys
from itertools import chain

import pytest
import torch
from blocks import COMPAT, Document, compat_on_path, run
from PIL import Image

from quicksviewer.synthetic.tiny_vlm import make_vlm
from quicksviewer.zoo import load_model_from_path

DOCUMENT = Document("003_models_loader.md")
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
QUESTIONS = ("What color is the car?", "Question 1", "Question 2", "Question 3 is longer than the others")
PIPELINE = """
task_type: vqa
data_paths: {{train: {root}/train.jsonl}}
tokenizer: {{name: {root}/vqa}}
image: {{root_dir: {root}}}
dataloader: {{batch_size: 4}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Tiny BLIPs of all tasks, pictures, questions about them, and the YAML that the document names."""
    root = tmp_path_factory.mktemp("seed_003")
    for task in ("vqa", "conditional_generation", "image_text_retrieval"):
        make_vlm(root / task, "blip", [*QUESTIONS, *COLOURS] * 3, task=task)
    rows = []
    for number in range(24):
        name, colour = list(COLOURS.items())[number % 3]
        Image.new("RGB", (40, 30), tuple(c + number // 3 for c in colour)).save(root / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": QUESTIONS[number % 2], "answer": name})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "config").mkdir()
    (root / "config" / "vqa_config.yaml").write_text(PIPELINE.format(root=root))
    return root


@pytest.fixture
def words(root):
    return {
        "Salesforce/blip-vqa-base": str(root / "vqa"),
        "Salesforce/blip-image-captioning-base": str(root / "conditional_generation"),
        "Salesforce/blip-base": str(root / "image_text_retrieval"),
        "path/to/image.jpg": str(root / "0.png"),
        'model_name="..."': f'model_name="{root / "vqa"}"',
        "load_model(..., ": f'load_model("{root / "vqa"}", ',
        "cuda:0": "cpu",
        '"cuda"': '"cpu"',
        "'cuda'": "'cpu'",
    }


@pytest.fixture
def names(root, words, tmp_path, monkeypatch):
    """The names that earlier blocks of the document leave, in a folder that has its config/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(root / "config")
    with compat_on_path():
        names = run(DOCUMENT, DOCUMENT.blocks[0], words)
        names["image"] = Image.open(root / "0.png")
        names |= {f"image{n}": Image.open(root / f"{n}.png") for n in (1, 2, 3)}
        names["question"] = QUESTIONS[0]
        yield names


def parameters(names) -> int:
    return sum(p.numel() for p in names["model"].parameters())


def loop_ran(names) -> bool:
    return names["loss"].isfinite().item() and not names["model"].training


CHECKS = {
    "方法1：使用便捷函数（推荐）": [
        lambda n: set(n["result"]) == {"model", "processor", "tokenizer", "image_processor"}
    ],
    "方法2：使用ModelLoader类": [
        lambda n: n["processor"].tokenizer is n["tokenizer"] is n["result"]["tokenizer"]
    ],
    "完整示例：加载数据并训练": [loop_ran],
    "1. 统计参数量": [lambda n: n["param_info"]["total"] == parameters(n) and n["size_mb"] > 1],
    "2. 冻结/解冻层": [lambda n: all(p.requires_grad for p in n["model"].parameters())],
    "3. 设备管理": [lambda n: n["device"] == torch.device("cpu")],
    "4. 保存和加载模型": [lambda n: isinstance(n["loaded_model"], n["BlipForQuestionAnswering"])],
    "5. 使用BLIP生成答案": [lambda n: isinstance(n["answer"], str)],
    "6. 准备输入": [lambda n: len(n["inputs"]["input_ids"]) == 3 == len(n["inputs"]["pixel_values"])],
    "7. 模型信息": [lambda n: n["info"]["total_parameters"] == parameters(n)],
    "BLIP": [lambda n: type(n["result"]["model"]).__name__ == "BlipForImageTextRetrieval"],
    "Auto（自动检测）": [lambda n: type(n["result"]["model"]).__name__ == "BlipForQuestionAnswering"],
    "量化加载": [lambda n: n["result"]["model"].is_loaded_in_4bit],
    "指定数据类型": [lambda n: n["result"]["model"].dtype == torch.float16],
    "多GPU支持": [lambda n: n["result"]["model"] is not None],
    "完整训练示例": [lambda n: n["epoch"] == 2 and n["model"].training],
    "Q1: 如何只加载模型而不加载processor？": [lambda n: set(n["result"]) == {"model"}],
    "Q2: 如何在不同设备上加载模型？": [lambda n: len(n["result"]) == 4],
    "Q3: 如何检查模型是否支持某个任务？": [lambda n: n["loader"].model_type == "blip"],
    "Q4: 模型加载失败怎么办？": [lambda n: n["result"]["model"] is not None],
}
"""Heading -> for each of its blocks, what holds after it."""
CASES = [(title, index) for title, checks in CHECKS.items() for index in range(len(checks))]


def test_every_block_of_the_document_is_a_case():
    found = [block.title for block in DOCUMENT.blocks]
    assert found == [title for title, _ in CASES]
    assert {block.language for block in DOCUMENT.blocks} == {"python"}


@pytest.mark.parametrize(("title", "index"), CASES, ids=[f"line_{b.line}" for b in DOCUMENT.blocks])
def test_a_block_runs_as_it_is_written(title, index, names, words):
    block = DOCUMENT.block(title, index)
    if (
        "'classifier'" in block.code
    ):  # BLIP has none: the document's own example of a name that matches nothing
        with pytest.raises(ValueError, match="no parameter .* lies under 'classifier'. It has: vision_model"):
            run(DOCUMENT, block, words, names)
        words = {**words, "'classifier'": "'text_decoder'"}
    run(DOCUMENT, block, words, names)
    assert CHECKS[title][index](names)


def test_the_freezing_block_freezes_what_it_names(names, words):
    block = DOCUMENT.block("2. 冻结/解冻层")
    run(DOCUMENT, block, {**words, "unfreeze_model(model)": "pass", "'classifier'": "'text_decoder'"}, names)
    learn = {name.partition(".")[0] for name, p in names["model"].named_parameters() if p.requires_grad}
    assert learn == {"text_decoder"}


def test_the_first_loop_with_its_two_missing_lines_learns_over_epochs(names, words):
    """The document leaves the step out and breaks off; here both are filled in."""
    losses, optimizers = [], {}

    def step(model, loss):
        optimizer = optimizers.setdefault(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    names |= {"step": step, "chain": chain}
    filled = {"# ... 反向传播和优化 ...": "step(model, loss)", "    break": "    pass"}
    filled |= {"in train_loader:": "in chain(*[train_loader] * 4):"}
    run(DOCUMENT, DOCUMENT.block("完整示例：加载数据并训练"), words | filled, names)
    epochs = [sum(losses[start : start + 6]) / 6 for start in range(0, 24, 6)]
    assert epochs == sorted(epochs, reverse=True) and epochs[-1] < epochs[0] / 2


def test_the_whole_training_loop_learns_and_its_checkpoint_loads_again(names, words, capsys, tmp_path):
    run(DOCUMENT, DOCUMENT.block("完整训练示例"), words, names)
    means = [float(text) for text in re.findall(r"平均损失: ([\d.]+)", capsys.readouterr().out)]
    assert len(means) == 3 and means[0] > means[1] > means[2]
    model, folder = names["model"], tmp_path / "checkpoints" / "blip_vqa_finetuned"
    assert not any(p.requires_grad for p in model.vision_model.parameters())
    again = load_model_from_path(folder, device="cpu")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    result = names["load_model"](str(folder), device="cpu")
    ask = {"image": names["image"], "question": QUESTIONS[0]}
    from quicksviewer.zoo import generate_answer_blip

    answers = {generate_answer_blip(m, result["processor"], **ask) for m in (model, result["model"])}
    assert len(answers) == 1


# --- the distribution


def test_every_name_of_the_zoo_is_there_and_importing_it_is_light():
    code = "import models; print(len(models.__all__), *(n in sys.modules for n in ('transformers', 'torch')))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['-m']; {code}"],
        env={**os.environ, "PYTHONPATH": f"{COMPAT}{os.pathsep}{COMPAT.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    from quicksviewer.zoo import __all__ as public

    assert done.stdout.split() == [str(len(public)), "False", "False"], done.stderr
    with compat_on_path():
        import models

        assert all(hasattr(models, name) for name in public)


def test_compat_can_be_installed(tmp_path):
    """Built and installed offline into a folder, then imported from there."""
    pytest.importorskip("setuptools", minversion="77", reason="the build needs setuptools of its own version")
    import shutil

    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(COMPAT, source, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    words = ["install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, str(target), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stderr
    code = "import sys; sys.argv = ['-m']; import models; print(models.__file__); models.load_model"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{COMPAT.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == str(target / "models" / "__init__.py"), done.stderr
