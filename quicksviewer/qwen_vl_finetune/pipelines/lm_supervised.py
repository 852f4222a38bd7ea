"""Task 2: LoRA in the vision tower and the merger, taught by the language model's answer alone.

`map_all` (mapping.py) makes conversations of annotations, `train` learns them, `infer` asks about other
pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from quicksviewer.qwen_vl_finetune.lora import LoraSettings, attach
from quicksviewer.qwen_vl_finetune.pipelines.annotations import Annotation
from quicksviewer.qwen_vl_finetune.pipelines.asking import ask_all, whole_model
from quicksviewer.qwen_vl_finetune.pipelines.batches import Batch, PictureSet, collate
from quicksviewer.qwen_vl_finetune.pipelines.journal import CsvLog
from quicksviewer.qwen_vl_finetune.pipelines.language import (
    Prompts,
    answer_loss,
    image_tokens,
    make_rows,
    states,
)
from quicksviewer.qwen_vl_finetune.pipelines.loop import check_gradients
from quicksviewer.qwen_vl_finetune.pipelines.mapping import read_mapped
from quicksviewer.qwen_vl_finetune.pipelines.settings import LmInfer, LmTrain
from quicksviewer.qwen_vl_finetune.pipelines.weights import read_settings, save_adapters
from quicksviewer.utils.config import to_plain
from quicksviewer.utils.dist import seed_everything
from quicksviewer.utils.registry import did_you_mean
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

TRAIN_COLUMNS = ("epoch", "step", "loss", "learning_rate")
INFER_COLUMNS = (
    *("dataset", "samples", "positive_ratio", "auroc", "acc", "f1"),
    *("lora_path", "base_model_path"),
)
DEFAULT_ARGS = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "num_train_epochs": 3,
    "learning_rate": 1e-4,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 42,
}
"""transformers.TrainingArguments where training_args says nothing."""
OLDER_ARGS = {"evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu", "warmup_ratio": "warmup_steps"}
"""Older names of arguments -> what transformers calls them now; a share of steps is written below 1."""


class AnsweredSet(Dataset):
    """Pictures with the tokens of their question and of the answer that is learned."""

    def __init__(self, rows: Sequence[tuple[Annotation, str, str]], processor, size: int, merge: int):
        self.rows, self.merge = rows, merge
        self.pictures = PictureSet([picture for picture, _, _ in rows], processor.image_processor, size)
        self.prompts = Prompts(processor)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, (_, question, answer) = self.pictures[index], self.rows[index]
        (count,) = image_tokens(item["grid_B3"], self.merge)
        ids = self.prompts.ids(question, count)
        return {
            "picture": item,
            "question": ids,
            "answer": [*self.prompts.encode(answer), self.prompts.end_id],
        }


@dataclass(frozen=True)
class AnsweredBatch:
    """Pictures of a batch with their token sequences, which stay lists until their device is known."""

    pictures: Batch
    questions: list[list[int]]
    answers: list[list[int]]


def collate_answered(items: Sequence[dict]) -> dict[str, AnsweredBatch]:
    return {
        "batch": AnsweredBatch(
            collate([item["picture"] for item in items]),
            [item["question"] for item in items],
            [item["answer"] for item in items],
        )
    }


def learned_loss(base, prompts: Prompts, batch: AnsweredBatch):
    """Mean cross-entropy of the answers' tokens, the end of the turn included."""
    device = next(base.parameters()).device
    pictures, tower = batch.pictures.to(device), base.model.visual
    rows = make_rows(prompts, batch.questions, batch.answers, device)
    pixels = pictures.pixels_PD.to(next(tower.parameters()).dtype)
    vision = tower(pixels, grid_thw=pictures.grid_B3).pooler_output
    return answer_loss(base, states(base, rows, pictures.grid_B3, vision), rows.labels_BT)


def train(config: LmTrain, run_id: str) -> dict[str, Any]:
    """Adapters, in save_lora_path; gives their folder and the mean loss."""
    folder = config.output(config.save_lora_path)
    args = training_arguments(config, folder.parent)
    seed_everything(args.seed)
    log = CsvLog(folder.parent / "train_log.csv", TRAIN_COLUMNS, run_id)
    rows = read_mapped(config.output(config.train_dataset_path), config.data)
    model, processor = whole_model(config.model(config.base_model_path), config.torch_dtype)
    settings = LoraSettings(
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        bias=config.lora_bias,
        seed=args.seed,
        targets=lora_targets(config),
        task_type=config.lora_task_type,
    )
    model = attach(model, settings)
    pictures = AnsweredSet(
        rows, processor, config.image_size, model.get_base_model().model.visual.spatial_merge_size
    )
    trainer = make_trainer(model, args, pictures)
    done = trainer.train()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            row = {"loss": float(entry["loss"]), "learning_rate": float(entry["learning_rate"])}
            log.add({"epoch": round(entry["epoch"], 3), "step": entry["step"], **row})
    save_adapters(folder, model, to_plain(config) | {"run_id": run_id})
    return {"folder": folder, "loss": done.training_loss}


def make_trainer(model, args, pictures: AnsweredSet):
    """transformers' Trainer over our own loss; it checks after the first backward pass that all adapters
    learn."""
    from transformers import Trainer

    class AnswerTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            base = self.accelerator.unwrap_model(model).get_base_model()
            loss = learned_loss(base, pictures.prompts, inputs["batch"])
            return (loss, None) if return_outputs else loss

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.state.global_step == 0:
                check_gradients((name, p) for name, p in model.named_parameters() if p.requires_grad)
            return loss

    trainer = AnswerTrainer(model=model, args=args, train_dataset=pictures, data_collator=collate_answered)
    trainer.model_accepts_loss_kwargs = (
        False  # the loss is a mean; transformers then divides by the accumulation
    )
    return trainer


def lora_targets(config: LmTrain) -> dict[str, tuple[str, ...]]:
    """Part -> patterns: all linear layers of the named blocks, and the extra modules, in the merger or the
    tower."""
    blocks = tuple(f"*.visual.blocks.{block}.*" for block in config.lora_target_blocks)
    merger = tuple(name for name in config.lora_extra_modules if "merger" in name.split("."))
    others = tuple(name for name in config.lora_extra_modules if name not in merger)
    found = {"vit": (*blocks, *others), "merger": merger}
    found = {part: patterns for part, patterns in found.items() if patterns}
    if not found:
        raise ValueError("lora_target_blocks and lora_extra_modules name nothing to train")
    return found


def training_arguments(config: LmTrain, folder: Path):
    """transformers.TrainingArguments of a configuration; unknown keys are told, older names renamed."""
    import torch
    from transformers import TrainingArguments

    from quicksviewer.qwen_vl_finetune.training import on_one_device

    known = [f.name for f in fields(TrainingArguments) if f.init]
    given = dict(DEFAULT_ARGS)
    for key, value in config.training_args.items():
        name = OLDER_ARGS.get(key, key)
        if name not in known:
            logger.warning("training_args: transformers has no %r.%s", key, did_you_mean(key, known))
            continue
        given[name] = value
    out = config.output(given.pop("output_dir")) if "output_dir" in given else folder
    if given.get("fp16"):
        raise ValueError(f"training_args: fp16 does not go with {config.torch_dtype} weights; use bf16")
    given["remove_unused_columns"] = False  # pictures are read by name, the Trainer must not look for columns
    given["use_cpu"] = given.get("use_cpu", not torch.cuda.is_available())
    args = TrainingArguments(**given, output_dir=str(out))
    if args.world_size > 1:
        raise ValueError(f"task 2 trains in one process on one device, and was started in {args.world_size}")
    return on_one_device(args)


def infer(config: LmInfer, run_id: str | None) -> dict[str, Any]:
    """Base and adapters, asked about held-out pictures."""
    adapters = config.output(config.lora_path)
    stored = read_settings(adapters)
    run_id = run_id or stored["run_id"]
    log = CsvLog(config.output(config.csv_path), INFER_COLUMNS, run_id)
    rows, dataset = None, config.annotation_file
    if config.mapped_dataset_path:
        dataset = config.mapped_dataset_path
        mapped = read_mapped(config.output(dataset), config.data)[: config.dataset_limit]
        rows = [(picture, question) for picture, question, _ in mapped]
    figures, _ = ask_all(config, adapters, config.base_model_path, stored["image_size"], run_id, rows)
    row = {"dataset": dataset, "samples": figures["num_samples"]}
    row |= {"lora_path": str(adapters), "base_model_path": config.model(config.base_model_path)}
    log.add(row | {name: figures[name] for name in ("positive_ratio", "auroc", "acc", "f1")})
    return figures
