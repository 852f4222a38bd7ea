"""The three tasks at a debug size: what is learned has gradients, what is saved comes back bit for bit."""

import csv
import json
import logging

import pytest
import torch

from quicksviewer.qwen_vl_finetune.lora import attach
from quicksviewer.qwen_vl_finetune.pipelines import asking, hybrid, lm_supervised, modular
from quicksviewer.qwen_vl_finetune.pipelines.annotations import read_annotations
from quicksviewer.qwen_vl_finetune.pipelines.asking import Asked, whole_model
from quicksviewer.qwen_vl_finetune.pipelines.batches import PictureSet, loader
from quicksviewer.qwen_vl_finetune.pipelines.judge import look
from quicksviewer.qwen_vl_finetune.pipelines.mapping import read_mapped
from quicksviewer.qwen_vl_finetune.pipelines.tap import VisualTap
from quicksviewer.qwen_vl_finetune.pipelines.tower import load_processor, load_tower
from quicksviewer.utils.manifest import write_manifest

BLOCKS = (0, 1, 2, 3)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def first_batch(world, image_processor):
    annotations = read_annotations(world.root / "data/testset2/annotation.json", world.root / "data")
    return next(iter(loader(PictureSet(annotations, image_processor, 84), 4, 0)))


class Kept:
    """Keeps the arguments of the last call of a function of a module, which runs as ever."""

    def __init__(self, monkeypatch, module, name):
        self.real, self.args = getattr(module, name), ()
        monkeypatch.setattr(module, name, self)

    def __call__(self, *args, **options):
        self.args = args
        return self.real(*args, **options)


def test_the_tower_alone_is_that_of_the_whole_model(world):
    name = str(world.root / "model")
    alone = load_tower(name, "float32")
    whole, _ = whole_model(name, "float32")
    found, expected = alone.model.visual.state_dict(), whole.model.visual.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    batch = first_batch(world, load_processor(name).image_processor)
    with torch.no_grad():
        outs = [
            t(batch.pixels_PD, grid_thw=batch.grid_B3).pooler_output
            for t in (alone.model.visual, whole.model.visual)
        ]
    assert torch.equal(*outs)
    assert not any(p.requires_grad for p in alone.parameters())


def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(world, tmp_path, monkeypatch):
    folder = tmp_path / "strange"
    folder.mkdir()
    strange = {"model_type": "strange", "auto_map": {"AutoConfig": "code.StrangeConfig"}}
    (folder / "config.json").write_text(json.dumps(strange))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail(f"asked: {words}"))
    with pytest.raises(ValueError, match="strange is a strange, expected a qwen2_5_vl"):
        load_tower(folder, "float32")


def test_what_is_written_does_not_depend_on_the_checkpoints_defaults(world, monkeypatch):
    model, processor = whole_model(str(world.root / "model"), "float32")
    asked = Asked(attach(model), processor, world.settings("lm-infer", max_new_tokens=8))
    batch = first_batch(world, processor.image_processor)
    with torch.inference_mode():
        _, expected = asked(batch, ["Fake or Real?"] * 4)
        model.generation_config.update(repetition_penalty=50.0, do_sample=True, top_k=3)
        assert asked(batch, ["Fake or Real?"] * 4)[1] == expected
        monkeypatch.setattr(asking, "GREEDY", {"do_sample": False})
        assert asked(batch, ["Fake or Real?"] * 4)[1] != expected, "the penalty must be one that shows"


def test_task_1_trains_is_measured_and_comes_back_bit_for_bit(world, monkeypatch, caplog):
    saved = Kept(monkeypatch, modular, "save_adapters")
    heads_of = Kept(monkeypatch, modular, "save_module")
    result = world.run("modular-train", "run1", epochs=2, batch_size=5, grad_accum=2)
    (log,) = [rows_of(world.root / "task1_modular_lora/training/train_log.csv")]
    assert list(log[0]) == ["timestamp", "epoch", "loss", "cls", "evi", "sparse", "contrast", "run_id"]
    assert [row["epoch"] for row in log] == ["1", "2"] and {row["run_id"] for row in log} == {"run1"}
    model, heads = saved.args[1].eval(), heads_of.args[1].eval()
    config = world.settings("modular-eval-heads")
    tower, heads_again = modular.load_trained(result["folder"], str(world.root / "model"), "float32")
    batch = first_batch(world, load_processor(str(world.root / "model")).image_processor)
    outputs = []
    for each, own in ((model.get_base_model().model.visual, heads), (tower, heads_again)):
        with VisualTap(each, BLOCKS) as tap, torch.no_grad():
            outputs.append(look(each, tap, own, batch)[0])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    figures = world.run("modular-eval-heads")
    out = config.output(config.out_dir)
    (row,) = rows_of(out / "metrics.csv")
    assert list(row) == ["timestamp", "dataset", "auroc", "acc", "f1", "mean_iou", "mean_dice", "run_id"]
    assert row["run_id"] == "run1" and float(row["auroc"]) == pytest.approx(figures["auroc"], abs=1e-5)
    results = json.loads((out / "inference_results.json").read_text())
    assert len(results["samples"]) == 8 and results["figures"]["num_masks"] == 4
    assert len(list((out / "overlays").glob("overlay_*.png"))) == 2
    with caplog.at_level(logging.WARNING):
        full = world.run("modular-eval-full", lora_r=4)
    assert "lora_r: the checkpoint was trained with 8, not 4" in caplog.text
    (row,) = rows_of(world.root / "task1_modular_lora/subtask_full_model_eval/metrics.csv")
    assert list(row) == ["timestamp", "dataset", "prompt", "num_samples", "auroc", "acc", "f1", "run_id"]
    assert full["num_samples"] == 2


def test_a_few_pictures_are_learned_by_heart(world, capsys):
    world.run("modular-train", epochs=10, batch_size=6, lr_lora=1e-3)
    told = [text for text in capsys.readouterr().out.splitlines() if text.startswith("step ")]
    assert told[0].startswith("step 1 of 20: loss ") and told[-1].startswith("step 20 of 20: loss ")
    assert told[-1].endswith(" 0.0 minutes left")
    log = rows_of(world.root / "task1_modular_lora/training/train_log.csv")
    assert float(log[-1]["loss"]) < 0.6 * float(log[0]["loss"])


def test_task_2_maps_trains_and_comes_back_bit_for_bit(world, monkeypatch):
    assert world.run("lm-map") == {"train": 12, "val": 4, "test": 8}
    assert not (world.root / "task2_lm_lora/datasets/parts").exists()
    rows = read_mapped(world.root / "task2_lm_lora/datasets/train", world.root / "data")
    assert [answer for _, _, answer in rows] == ["Real", "Fake"] * 6
    assert len({question for _, question, _ in rows}) == 1, "the prompt is the same whatever the label"
    saved = Kept(monkeypatch, lm_supervised, "save_adapters")
    world.run("lm-train", "run2")
    (log,) = [rows_of(world.root / "task2_lm_lora/training/train_log.csv")]
    assert list(log[0]) == ["timestamp", "epoch", "step", "loss", "learning_rate", "run_id"]
    model = saved.args[1].eval()
    assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)
    world.run("lm-infer")
    (row,) = rows_of(world.root / "task2_lm_lora/evaluation/metrics.csv")
    seed = "timestamp dataset samples positive_ratio auroc acc f1 lora_path base_model_path run_id"
    assert list(row) == seed.split() and row["run_id"] == "run2"
    samples = json.loads((world.root / "task2_lm_lora/evaluation/inference_results.json").read_text())[
        "samples"
    ]
    config = world.settings("lm-infer")
    asked = Asked(model, load_processor(str(world.root / "model")), config)
    batch = first_batch(world, asked.prompts.processor.image_processor)
    with torch.inference_mode():
        probabilities, texts = asked(batch, [config.prompt_text] * 4)
    assert probabilities == [sample["fake_probability"] for sample in samples]
    assert texts == [sample["generated_text"] for sample in samples]
    world.run("lm-infer", mapped_dataset_path="task2_lm_lora/datasets/test", annotation_file=None)
    again = rows_of(world.root / "task2_lm_lora/evaluation/metrics.csv")[1]
    assert {k: again[k] for k in ("auroc", "acc", "f1")} == {k: row[k] for k in ("auroc", "acc", "f1")}


def test_mapped_rows_may_not_leave_the_root(world):
    world.run("lm-map")
    folder = world.root / "task2_lm_lora/datasets/test"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {row["mask"] is None for row in rows} == {True, False}
    assert all((world.root / "data" / row["mask"]).is_file() for row in rows if row["mask"])
    rows[1]["mask"] = "../outside.png"
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_manifest(folder)
    with pytest.raises(ValueError, match="rows.jsonl, line 2: the path '../outside.png' leaves"):
        read_mapped(folder, world.root / "data")


def test_task_3_trains_from_task_1_and_comes_back_bit_for_bit(world, monkeypatch, capsys):
    world.run("modular-train", "run1")
    started = Kept(monkeypatch, hybrid, "save")
    heads = "task1_modular_lora/training/modular_vit_lora"
    world.run("hybrid-train", "run3", init_head_checkpoint=heads, batch_size=4)
    log = rows_of(world.root / "task3_hybrid_lora/training/train_log.csv")
    assert list(log[0]) == [
        "timestamp",
        "epoch",
        "step",
        "loss",
        "lm",
        "cls",
        "evi",
        "sparse",
        "contrast",
        "run_id",
    ]
    assert [row["step"] for row in log] == ["1", "2", "3"]
    assert f"step 3 of 3: loss {float(log[-1]['loss']):.4f}, rate " in capsys.readouterr().out
    trained = started.args[1]
    again, processor, _ = hybrid.load_trained(world.settings("hybrid-eval"))
    batch = first_batch(world, processor.image_processor)
    answers = []
    for each in (trained, again):
        for module in each.modules():
            module.eval()
        with torch.inference_mode():
            answers.append(each.verdict(batch))
    assert torch.equal(answers[0][0], answers[1][0])
    assert all(torch.equal(a, b) for a, b in zip(answers[0][1], answers[1][1], strict=True))
    figures = world.run("hybrid-eval")
    (row,) = rows_of(world.root / "task3_hybrid_lora/evaluation/metrics.csv")
    seed = "timestamp auroc acc f1 head_auroc head_acc head_f1 mean_iou mean_dice run_id"
    assert list(row) == seed.split() and row["run_id"] == "run3"
    assert figures["num_masks"] == 4


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("stale", ["task3_heads", "task3_fusion"])
def test_parts_of_two_epochs_are_refused_by_name(world, monkeypatch, stale):
    """A run that ends in its second epoch, before one of the parts is written."""
    real = hybrid.save_module

    def save_module(path, module, of):
        if (path.stem, of["epoch"]) == (stale, 2):
            raise Killed
        real(path, module, of)

    monkeypatch.setattr(hybrid, "save_module", save_module)
    with pytest.raises(Killed):
        world.run("hybrid-train", "run3", epochs=2, batch_size=6)
    with pytest.raises(
        ValueError, match=f"{stale}.safetensors is of epoch 1, expected epoch 2: a training was"
    ):
        world.run("hybrid-eval")
    monkeypatch.undo()
    world.run("hybrid-train", "run4", batch_size=6)
    part = world.root / f"task3_hybrid_lora/training/{stale}.safetensors"
    kept = part.read_bytes()
    world.run("hybrid-train", "run5", batch_size=6)
    part.write_bytes(kept)
    with pytest.raises(ValueError, match=f"{stale}.safetensors is of run_id run4, expected run_id run5"):
        world.run("hybrid-eval")


def test_one_step_reaches_every_adapter_of_both_towers(world):
    """Also the fusion, through which the language model's loss alone reaches the heads."""
    config = world.settings("hybrid-train")
    trained, processor = hybrid.start(config)
    batch = first_batch(world, processor.image_processor)
    for module in trained.modules():
        module.train()
    trained.losses(batch, config)["lm"].backward()
    named = [pair for module in trained.modules() for pair in module.named_parameters()]
    learning = {name for name, p in named if p.requires_grad}
    for part in (
        "visual.blocks.0.",
        "visual.blocks.3.",
        "visual.merger.mlp.0",
        "visual.merger.mlp.2",
        "layers.1.",
    ):
        assert any(part in name and "lora_B" in name for name in learning), part
    silent = [name for name, p in named if p.requires_grad and p.grad is None]
    assert silent == []
    zero = [name for name, p in named if p.requires_grad and "lora_B" in name and not p.grad.abs().sum() > 0]
    assert zero == []
    assert [name for name, p in named if not p.requires_grad and p.grad is not None] == []


def test_patterns_that_match_nothing_are_errors(world):
    with pytest.raises(ValueError, match="'visual.proj' matches none of its 20 linear layers"):
        hybrid.start(
            world.settings("hybrid-train", lora=dict(visual=dict(blocks=[0], extra_patterns=["visual.proj"])))
        )
    world.run("lm-map")
    with pytest.raises(ValueError, match="blocks.31.*matches none"):
        world.run("lm-train", lora_target_blocks=[31])


def test_heads_of_other_blocks_are_no_start(world):
    world.run("modular-train", "run1", visual_layers=[1, 3])
    with pytest.raises(ValueError, match=r"looks at the blocks \[1, 3\], visual_layers says \[0, 1, 2, 3\]"):
        hybrid.start(
            world.settings(
                "hybrid-train", init_head_checkpoint="task1_modular_lora/training/modular_vit_lora"
            )
        )


def test_a_log_of_other_columns_is_refused_before_the_work(world):
    path = world.root / "task1_modular_lora/training/train_log.csv"
    path.parent.mkdir(parents=True)
    path.write_text("timestamp,epoch,loss\n")
    with pytest.raises(ValueError, match="has the columns timestamp,epoch,loss, expected"):
        world.run("modular-train", model_path="nowhere")


def test_a_damaged_checkpoint_is_named(world):
    folder = world.run("modular-train", "run1")["folder"]
    (folder / "heads.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="heads.safetensors has 5 bytes"):
        world.run("modular-eval-heads")
    with pytest.raises(FileNotFoundError, match="no checkpoint .*elsewhere"):
        world.run("modular-eval-heads", ckpt_path="elsewhere")


def test_the_default_precision_runs_from_end_to_end(world):
    """bfloat16 weights, as all shipped configurations have them."""
    half = dict(torch_dtype="bfloat16")
    world.run("modular-train", "run1", **half, amp_dtype="bfloat16")
    assert 0 <= world.run("modular-eval-heads", **half)["auroc"] <= 1
    assert 0 <= world.run("modular-eval-full", **half, dataset_limit=4)["auroc"] <= 1
    world.run("hybrid-train", "run3", **half, amp_dtype="bfloat16", batch_size=6)
    assert 0 <= world.run("hybrid-eval", **half)["auroc"] <= 1
    world.run("lm-map")
    training = world.overrides("lm-train")["training_args"] | {"bf16": True}
    assert world.run("lm-train", **half, training_args=training)["loss"] > 0


def test_a_model_that_is_not_there_is_named(world):
    with pytest.raises(FileNotFoundError, match="no model at .*/nowhere"):
        world.run("lm-map", base_model_path="nowhere")
    assert world.settings("lm-map").model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_answers_that_the_tokenizer_cannot_tell_apart_are_refused_while_mapping(world):
    with pytest.raises(ValueError, match="must begin with different tokens"):
        world.run("lm-map", real_token="Fake")
