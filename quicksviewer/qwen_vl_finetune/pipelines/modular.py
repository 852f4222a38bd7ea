"""Task 1: LoRA in the vision tower, taught by a classification head and a heat-map head on it.

`train` needs the tower alone; `eval_heads` measures tower and heads, `eval_full` puts the trained tower into
the whole model and asks its language model.
"""

from pathlib import Path
from typing import Any

import torch

from quicksviewer.qwen_vl_finetune.lora import LoraSettings, add_saved, attach
from quicksviewer.qwen_vl_finetune.pipelines.asking import ask_all
from quicksviewer.qwen_vl_finetune.pipelines.batches import PictureSet, loader
from quicksviewer.qwen_vl_finetune.pipelines.config import dtype_named, warn_where_stored_differs
from quicksviewer.qwen_vl_finetune.pipelines.heads import ForensicHeads, HeadsConfig
from quicksviewer.qwen_vl_finetune.pipelines.journal import CsvLog, save_results
from quicksviewer.qwen_vl_finetune.pipelines.judge import PictureScores, each_batch, fresh_heads, look
from quicksviewer.qwen_vl_finetune.pipelines.loop import Group, amp, fit
from quicksviewer.qwen_vl_finetune.pipelines.losses import head_losses, weighted_sum
from quicksviewer.qwen_vl_finetune.pipelines.masks import read_with_masks
from quicksviewer.qwen_vl_finetune.pipelines.metrics import classification
from quicksviewer.qwen_vl_finetune.pipelines.overlay import OverlayFolder
from quicksviewer.qwen_vl_finetune.pipelines.settings import ModularEval, ModularFullEval, ModularTrain
from quicksviewer.qwen_vl_finetune.pipelines.tap import VisualTap
from quicksviewer.qwen_vl_finetune.pipelines.tower import load_processor, load_tower, tower_of
from quicksviewer.qwen_vl_finetune.pipelines.weights import (
    HEADS,
    load_module,
    read_settings,
    save_adapters,
    save_module,
)
from quicksviewer.utils.config import to_plain
from quicksviewer.utils.dist import seed_everything
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

TRAIN_COLUMNS = ("epoch", "loss", "cls", "evi", "sparse", "contrast")
HEAD_COLUMNS = ("dataset", "auroc", "acc", "f1", "mean_iou", "mean_dice")
FULL_COLUMNS = ("dataset", "prompt", "num_samples", "auroc", "acc", "f1")
STORED = ("lora_target_layers", "lora_r", "lora_alpha", "lora_dropout")
"""What a configuration of an evaluation may say of the training, to be told where it is wrong."""


# --- training ---


def train(config: ModularTrain, run_id: str) -> dict[str, Any]:
    """Adapters and heads, under out_dir; gives their folder and the losses of the last epoch."""
    seed_everything(config.seed)
    out = config.output(config.out_dir)
    log = CsvLog(out / config.train_log, TRAIN_COLUMNS, run_id)
    annotations = read_with_masks(config.data / config.ann_train, config.data)
    name = config.model(config.model_path)
    pictures = PictureSet(annotations, load_processor(name).image_processor, config.image_size)
    model = attach(load_tower(name, dtype_named(config.torch_dtype)), lora_settings(config)).train()
    tower = tower_of(model)
    heads = fresh_heads(tower, len(config.visual_layers))
    folder, seen = out / config.final_trained_heads, []

    def losses_of(batch):
        output, _ = look(tower, tap, heads, batch)
        losses = head_losses(output, batch.targets, config.evi_alpha)
        return losses | {"loss": weighted_sum(losses, config.weights)}

    def on_epoch(epoch: int) -> None:
        means = {name: sum(step[name] for step in seen) / len(seen) for name in TRAIN_COLUMNS[1:]}
        seen.clear()
        log.add({"epoch": epoch, **means})
        logger.info("epoch %d of %d: %s", epoch, config.epochs, _shown(means))
        settings = to_plain(config) | {"lora_target_layers": list(target_layers(config)), "run_id": run_id}
        save_adapters(folder, model, settings, lambda aside: save_module(aside / HEADS, heads))
        result.update(means)

    result: dict[str, Any] = {"folder": folder}
    groups = [
        Group("heads", (heads,), config.lr_head, config.weight_decay),
        Group("adapters", (model,), config.lr_lora),
    ]
    batches = loader(pictures, config.batch_size, config.num_workers, shuffle_seed=config.seed)
    with VisualTap(tower, config.visual_layers) as tap:
        fit(groups, batches, losses_of, config, lambda _e, _s, means: seen.append(means), on_epoch)
    return result


def target_layers(config: ModularTrain) -> tuple[int, ...]:
    """Blocks with adapters. ValueError for blocks that no head can teach: those above what the heads look
    at."""
    last = max(config.visual_layers, default=-1)
    if config.lora_target_layers is None:
        return tuple(range(last + 1))
    if above := [layer for layer in config.lora_target_layers if layer > last]:
        raise ValueError(
            f"lora_target_layers {above} lie above the last of visual_layers, {last}: no loss reaches them"
        )
    if not config.lora_target_layers:
        raise ValueError("lora_target_layers is empty; null means all blocks")
    return config.lora_target_layers


def lora_settings(config: ModularTrain) -> LoraSettings:
    return LoraSettings(
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        seed=config.seed,
        targets={"vit": tuple(f"*.visual.blocks.{layer}.*" for layer in target_layers(config))},
    )


# --- evaluation ---


def eval_heads(config: ModularEval, run_id: str | None) -> dict[str, Any]:
    """Tower and heads on held-out pictures: one row of CSV, a record of each picture, drawings."""
    checkpoint = config.output(config.ckpt_path)
    stored = read_settings(checkpoint)
    warn_where_stored_differs(config, stored, (*STORED, "visual_layers"))
    run_id, out = run_id or stored["run_id"], config.output(config.out_dir)
    log = CsvLog(out / config.csv_path, HEAD_COLUMNS, run_id)
    annotations = read_with_masks(config.data / config.ann_test, config.data)
    name = config.model(config.model_path)
    pictures = PictureSet(annotations, load_processor(name).image_processor, stored["image_size"])
    tower, heads = load_trained(checkpoint, name, config.torch_dtype)
    device = next(tower.parameters()).device
    scores = PictureScores(pictures, OverlayFolder(out / "overlays", config.overlays))
    batches = loader(pictures, config.batch_size, config.num_workers)
    with VisualTap(tower, stored["visual_layers"]) as tap, torch.inference_mode():
        for batch in each_batch(batches, device, "heads"):
            with amp(device, stored["amp_dtype"]):
                output, _ = look(tower, tap, heads, batch)
            scores.add(batch, output, lambda _: "")
    labels, probabilities = verdicts(scores.records)
    figures = classification(labels, probabilities) | scores.maps.figures()
    save_results(out / config.output_json, run_id, figures, scores.records)
    log.add({"dataset": config.ann_test, **{name: figures[name] for name in HEAD_COLUMNS[1:]}})
    return figures


def load_trained(checkpoint: Path, name: str, dtype: str):
    """Tower with adapters and heads as `train` left them, in eval mode."""
    model = add_saved(load_tower(name, dtype_named(dtype)), checkpoint).eval()
    heads = load_module(checkpoint / HEADS, ForensicHeads, HeadsConfig).eval()
    tower = tower_of(model)
    return tower, heads.to(next(tower.parameters()).device)


def eval_full(config: ModularFullEval, run_id: str | None) -> dict[str, Any]:
    """The whole model with the trained tower, asked about held-out pictures."""
    checkpoint = config.output(config.lora_checkpoint)
    stored = read_settings(checkpoint)
    warn_where_stored_differs(config, stored, (*STORED, "image_size"))
    run_id = run_id or stored["run_id"]
    log = CsvLog(config.output(config.csv_path), FULL_COLUMNS, run_id)
    figures, _ = ask_all(config, checkpoint, config.model_path, stored["image_size"], run_id)
    row = {"dataset": config.annotation_file, "prompt": config.prompt_text}
    log.add(row | {name: figures[name] for name in FULL_COLUMNS[2:]})
    return figures


def verdicts(records: list[dict]) -> tuple[list[int], list[float]]:
    """Labels and probabilities of records."""
    return [r["image_label"] for r in records], [r["fake_probability"] for r in records]


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
