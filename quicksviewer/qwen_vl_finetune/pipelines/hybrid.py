"""Task 3: LoRA in tower, merger and language model; heads on the tower, and what they see fused into the
chat.

The tower runs once a step: its blocks feed the heads, its merged tokens the language model.
"""

from typing import Any

import torch
from torch import Tensor, nn

from quicksviewer.qwen_vl_finetune.lora import LoraSettings, add_saved, attach
from quicksviewer.qwen_vl_finetune.pipelines.asking import whole_model
from quicksviewer.qwen_vl_finetune.pipelines.batches import Batch, PictureSet, loader
from quicksviewer.qwen_vl_finetune.pipelines.fusion import FusionConfig, FusionProjector
from quicksviewer.qwen_vl_finetune.pipelines.heads import ForensicHeads, HeadOutput, HeadsConfig
from quicksviewer.qwen_vl_finetune.pipelines.journal import CsvLog, save_results
from quicksviewer.qwen_vl_finetune.pipelines.judge import PictureScores, each_batch, fresh_heads, look
from quicksviewer.qwen_vl_finetune.pipelines.language import (
    Prompts,
    answer_loss,
    image_tokens,
    make_rows,
    states,
    word_scores,
)
from quicksviewer.qwen_vl_finetune.pipelines.loop import Group, amp, fit
from quicksviewer.qwen_vl_finetune.pipelines.losses import head_losses, weighted_sum
from quicksviewer.qwen_vl_finetune.pipelines.masks import read_with_masks
from quicksviewer.qwen_vl_finetune.pipelines.metrics import classification
from quicksviewer.qwen_vl_finetune.pipelines.overlay import OverlayFolder
from quicksviewer.qwen_vl_finetune.pipelines.settings import HybridEval, HybridLora, HybridTrain
from quicksviewer.qwen_vl_finetune.pipelines.tap import VisualTap
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

TRAIN_COLUMNS = ("epoch", "step", "loss", "lm", "cls", "evi", "sparse", "contrast")
EVAL_COLUMNS = (
    *("auroc", "acc", "f1", "head_auroc", "head_acc", "head_f1"),
    *("mean_iou", "mean_dice"),
)


class Hybrid:
    """A model with adapters, heads and fusion, and the question that it is asked."""

    def __init__(
        self, model, processor, heads: ForensicHeads, fusion: FusionProjector, levels, prompt, words
    ):
        self.model, self.heads, self.fusion = model, heads, fusion
        self.base = model.get_base_model()
        self.tower = self.base.model.visual
        self.device = next(self.tower.parameters()).device
        self.prompts, self.prompt = Prompts(processor), prompt
        self.words = self.prompts.words(*words)
        self.tap = VisualTap(self.tower, levels)

    def modules(self) -> tuple[nn.Module, ...]:
        return self.model, self.heads, self.fusion

    def _questions(self, batch: Batch) -> list[list[int]]:
        counts = image_tokens(batch.grid_B3, self.tower.spatial_merge_size)
        return [self.prompts.ids(self.prompt, count) for count in counts]

    def losses(self, batch: Batch, config: HybridTrain) -> dict[str, Tensor]:
        """lm and the heads' losses, and their weighted sum as "loss"."""
        seen, vision = look(self.tower, self.tap, self.heads, batch)
        end = [self.prompts.end_id]
        fake, real = self.words
        answers = [(fake if label else real) + end for label in batch.label_B.tolist()]
        rows = make_rows(self.prompts, self._questions(batch), answers, self.device)
        hidden_BTD = states(self.base, rows, batch.grid_B3, vision, self.fusion(seen))
        losses = {"lm": answer_loss(self.base, hidden_BTD, rows.labels_BT)}
        losses |= head_losses(seen, batch.targets, config.evi_alpha)
        return losses | {"loss": weighted_sum(losses, config.loss_weights)}

    def verdict(self, batch: Batch) -> tuple[Tensor, HeadOutput]:
        """log P of the two answers (B, 2) and what the heads say."""
        seen, vision = look(self.tower, self.tap, self.heads, batch)
        extra_BED, questions = self.fusion(seen), self._questions(batch)
        scores = word_scores(
            self.base,
            lambda head: make_rows(self.prompts, questions, [head] * len(questions), self.device),
            self.words,
            lambda rows: states(self.base, rows, batch.grid_B3, vision, extra_BED),
        )
        return scores, seen


# --- training ---


def train(config: HybridTrain, run_id: str) -> dict[str, Any]:
    """Adapters, heads and fusion, under output_dir; gives that folder and the losses of the last step."""
    seed_everything(config.seed)
    out = config.output(config.output_dir)
    log = CsvLog(out / config.train_log, TRAIN_COLUMNS, run_id)
    annotations = read_with_masks(config.data / config.ann_train, config.data)
    hybrid, processor = start(config)
    pictures = PictureSet(annotations, processor.image_processor, config.image_size)
    result: dict[str, Any] = {"folder": out}

    def on_step(epoch: int, step: int, means: dict[str, float]) -> None:
        log.add({"epoch": epoch, "step": step, **means})
        result.update(means)

    def on_epoch(epoch: int) -> None:
        save(config, hybrid, run_id, epoch)
        shown = ", ".join(f"{name} {result[name]:.4f}" for name in TRAIN_COLUMNS[2:])
        logger.info("epoch %d of %d: %s", epoch, config.epochs, shown)

    groups = [
        Group("heads", (hybrid.heads,), config.lr_head, config.weight_decay),
        Group("fusion", (hybrid.fusion,), config.lr_fusion, config.weight_decay),
        Group("adapters", (hybrid.model,), config.lr_lora),
    ]
    batches = loader(pictures, config.batch_size, config.num_workers, shuffle_seed=config.seed)
    for module in hybrid.modules():
        module.train()
    fit(groups, batches, lambda batch: hybrid.losses(batch, config), config, on_step, on_epoch)
    return result


def start(config: HybridTrain) -> tuple[Hybrid, Any]:
    """The base model with fresh adapters and fusion, heads fresh or of task 1; and its processor."""
    model, processor = whole_model(config.model(config.base_model_path), config.torch_dtype)
    lora = config.lora
    settings = LoraSettings(
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        bias=lora.bias,
        seed=config.seed,
        targets=lora_targets(lora),
    )
    model = attach(model, settings)
    base = model.get_base_model()
    heads = fresh_heads(base.model.visual, len(config.visual_layers))
    if config.init_head_checkpoint:
        heads = _heads_of_task_1(config, heads)
    shape = FusionConfig(
        pooled_width=heads.config.fused_width,
        model_width=base.config.text_config.hidden_size,
        tokens=config.fusion_tokens,
        bottleneck=config.fusion_bottleneck,
        dropout=config.fusion_hidden_dropout,
    )
    device = next(base.parameters()).device
    fusion = FusionProjector(shape).to(device)
    words = (config.target_text.fake, config.target_text.real)
    levels, prompt = config.visual_layers, config.prompt_text
    return Hybrid(model, processor, heads.to(device), fusion, levels, prompt, words), processor


def _heads_of_task_1(config: HybridTrain, fresh: ForensicHeads) -> ForensicHeads:
    """The heads that task 1 has trained. ValueError where they look at other blocks or another tower."""
    folder = config.output(config.init_head_checkpoint)
    stored = read_settings(folder)
    if tuple(stored["visual_layers"]) != config.visual_layers:
        raise ValueError(
            f"init_head_checkpoint {folder} looks at the blocks {stored['visual_layers']}, "
            f"visual_layers says {list(config.visual_layers)}"
        )
    heads = load_module(folder / HEADS, ForensicHeads, HeadsConfig)
    if heads.config != fresh.config:
        raise ValueError(f"init_head_checkpoint {folder} has {heads.config}, expected {fresh.config}")
    return heads


def lora_targets(lora: HybridLora) -> dict[str, tuple[str, ...]]:
    """Part -> patterns of the layers with adapters. ValueError where an enabled part names nothing."""
    visual = tuple(f"*.visual.blocks.{block}.*" for block in lora.visual.blocks)
    found = {
        "vit": (lora.visual, (*visual, *lora.visual.extra_patterns, *lora.visual.extra_modules)),
        "merger": (lora.merge, (*lora.merge.module_patterns, *lora.merge.extra_modules)),
        "lm": (lora.lm, (*lora.lm.module_patterns, *lora.lm.extra_modules)),
    }
    targets = {part: patterns for part, (row, patterns) in found.items() if row.enabled}
    if not targets:
        raise ValueError("lora: none of visual, merge and lm is enabled")
    if empty := [part for part, patterns in targets.items() if not patterns]:
        raise ValueError(f"lora: {', '.join(empty)} is enabled and names no layer; set enabled to false")
    return targets


def save(config: HybridTrain, hybrid: Hybrid, run_id: str, epoch: int) -> None:
    """The three parts, each whole or as it was before, and each with the run and epoch that it is of."""
    out, of = config.output(config.output_dir), {"run_id": run_id, "epoch": epoch}
    save_adapters(out / config.lora_checkpoint, hybrid.model, to_plain(config) | of)
    save_module(out / config.head_checkpoint, hybrid.heads, of)
    save_module(out / config.fusion_checkpoint, hybrid.fusion, of)


# --- evaluation ---


def load_trained(config: HybridEval) -> tuple[Hybrid, Any, dict[str, Any]]:
    """What `train` has saved, in eval mode; the processor; what it was trained with. ValueError where the
    three parts are not of one run and epoch."""
    out = config.output(config.output_dir)
    stored = read_settings(out / config.lora_checkpoint)
    of = {name: stored.get(name) for name in ("run_id", "epoch")}
    heads = load_module(out / config.head_checkpoint, ForensicHeads, HeadsConfig, of)
    fusion = load_module(out / config.fusion_checkpoint, FusionProjector, FusionConfig, of)
    model, processor = whole_model(config.model(config.base_model_path), config.torch_dtype)
    model = add_saved(model, out / config.lora_checkpoint)
    device = next(model.parameters()).device
    words = (stored["target_text"]["fake"], stored["target_text"]["real"])
    levels, prompt = stored["visual_layers"], stored["prompt_text"]
    hybrid = Hybrid(model, processor, heads.to(device), fusion.to(device), levels, prompt, words)
    for module in hybrid.modules():
        module.eval()
    return hybrid, processor, stored


def evaluate(config: HybridEval, run_id: str | None) -> dict[str, Any]:
    """Answers and heads on held-out pictures: one row of CSV, a record of each picture, drawings."""
    stored = read_settings(config.output(config.output_dir) / config.lora_checkpoint)
    run_id, out = run_id or stored["run_id"], config.output(config.eval_dir)
    log = CsvLog(out / config.metrics_csv, EVAL_COLUMNS, run_id)
    hybrid, processor, _ = load_trained(config)
    annotations = read_with_masks(config.data / config.ann_eval, config.data)
    pictures = PictureSet(annotations, processor.image_processor, stored["image_size"])
    scores = PictureScores(pictures, OverlayFolder(out / "overlays", config.overlays))
    answers: list[float] = []
    with torch.inference_mode():
        for batch in each_batch(
            loader(pictures, config.batch_size, config.num_workers), hybrid.device, "hybrid"
        ):
            with amp(hybrid.device, stored["amp_dtype"]):
                words, seen = hybrid.verdict(batch)
            said = words.softmax(dim=1)[:, 0].tolist()
            scores.add(batch, seen, lambda place, said=said: f", answer: fake {said[place]:.3f}")
            answers += said
    figures = _figures(scores, answers)
    save_results(out / config.inference_output, run_id, figures, scores.records)
    log.add({name: figures[name] for name in EVAL_COLUMNS})
    return figures


def _figures(scores: PictureScores, answers: list[float]) -> dict[str, Any]:
    """Of the answers under plain names, of the heads under head_*; records get the answers' verdict."""
    labels = [record["image_label"] for record in scores.records]
    heads = classification(labels, [record["fake_probability"] for record in scores.records])
    for record, probability in zip(scores.records, answers, strict=True):
        record |= {"fake_probability": probability, "predicted_label": int(probability >= 0.5)}
    figures = classification(labels, answers) | {f"head_{name}": value for name, value in heads.items()}
    return figures | scores.maps.figures()
