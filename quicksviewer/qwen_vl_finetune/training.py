"""Training of adapters on conversations, over transformers' Trainer."""

import time
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    modeling_utils,
)

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.qwen_vl_finetune.backends import backend
from quicksviewer.qwen_vl_finetune.load import why_not_quantised
from quicksviewer.qwen_vl_finetune.lora import silent_adapters
from quicksviewer.qwen_vl_finetune.progress import line
from quicksviewer.qwen_vl_finetune.prompts import Collator
from quicksviewer.qwen_vl_finetune.settings import OcrSettings, current
from quicksviewer.utils.modules import get_device
from quicksviewer.utils.utils import get_logger

RECOMPUTE = (
    "activation_checkpointing"
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)
"""transformers has renamed it; the older name warns."""

log = get_logger(__name__)


class OcrTrainer(Trainer):
    """The loss of a step is the mean over its target tokens, however they lie in micro-batches and processes.
    `keeps_targets`: whether forward may be asked for the logits of targets only, which saves most of them."""

    def __init__(self, *args, keeps_targets: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # what `compute_loss` gives is divided already
        self.keeps_targets = keeps_targets and hasattr(modeling_utils, "slice_logits_to_keep")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        given = dict(inputs)
        labels_BT = F.pad(given.pop("labels")[:, 1:], (0, 1), value=IGNORE_INDEX)
        wanted_BT = labels_BT != IGNORE_INDEX
        keep = {"logits_to_keep": wanted_BT} if self.keeps_targets else {}
        outputs = model(**given, **keep)
        logits_KV = outputs.logits if self.keeps_targets else outputs.logits[wanted_BT]
        total = F.cross_entropy(logits_KV.float(), labels_BT[wanted_BT], reduction="sum")
        if num_items_in_batch is None:
            loss = total / len(logits_KV)
        else:
            shares = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = total / num_items_in_batch * shares
        return (loss, outputs) if return_outputs else loss


class CheckAdapters(TrainerCallback):
    """Ends a run whose adapters do not all learn, before its first step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0 and (silent := silent_adapters(model)):
            raise RuntimeError(f"{len(silent)} adapter weights have no gradient, such as {silent[:3]}")


class Lines(TrainerCallback):
    """One line for each of the trainer's logs: step, loss, rate, time that is left."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, self.first = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}) or not state.is_world_process_zero:
            return
        pace = (state.global_step - self.first) / (time.perf_counter() - self.began)
        loss, rate = float(logs["loss"]), float(logs["learning_rate"])
        print(line(state.global_step, state.max_steps, loss, [rate], pace), flush=True)


def with_lines(trainer: Trainer) -> Trainer:
    """The trainer with Lines in place of transformers' own progress."""
    for usual in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(usual)
    trainer.add_callback(Lines())
    return trainer


def arguments_of(settings: OcrSettings, device: torch.device, **overrides) -> TrainingArguments:
    """transformers' arguments for the settings, with numbers and optimizer that the device can run."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    checkpointing = settings.gradient_checkpointing
    given = dict(
        output_dir=settings.output_dir,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        warmup_steps=settings.warmup_steps,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        optim=_optimizer(settings.optim, device),
        weight_decay=settings.weight_decay,
        logging_steps=settings.logging_steps,
        save_steps=settings.save_steps,
        seed=settings.seed,
        bf16=has_bf16,
        fp16=device.type == "cuda" and not has_bf16,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        report_to="none",
    )
    if device.type == "cuda" if checkpointing is None else checkpointing:
        given |= {RECOMPUTE: True, f"{RECOMPUTE}_kwargs": {"use_reentrant": False}}
    return on_one_device(TrainingArguments(**{**given, **overrides}))


def on_one_device(args: TrainingArguments) -> TrainingArguments:
    """Arguments by which a process uses one device. Over several, transformers would split batches, and
    pixel_values by their patches."""
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _optimizer(name: str, device: torch.device) -> str:
    """The optimizer of the settings, or AdamW where it needs bitsandbytes and that cannot run."""
    if "8bit" in name and (lacking := why_not_quantised(device)):
        log.warning("adamw_torch in place of %s: %s", name, lacking)
        return "adamw_torch"
    return name


def setup_trainer(
    model, tokenizer, converted_dataset, output_dir: str | None = None, **overrides
) -> OcrTrainer:
    """A trainer of a model's adapters on conversations, with the hyper-parameters of the settings.

    tokenizer: the processor. overrides: transformers' TrainingArguments by name. ValueError for a model of
    which nothing learns.
    """
    settings = current()
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("nothing of the model learns: setup_peft_model gives it adapters")
    if output_dir is not None:
        overrides["output_dir"] = output_dir
    return OcrTrainer(
        model=model,
        args=arguments_of(settings, get_device(model), **overrides),
        train_dataset=converted_dataset,
        data_collator=Collator(tokenizer, settings.max_length),
        keeps_targets=backend(settings.backend).keeps_targets,
        processing_class=tokenizer,
        callbacks=[CheckAdapters()],
    )


def train_model(trainer: Trainer, resume_from_checkpoint: str | bool | None = None):
    """Train, and give transformers' TrainOutput; `metrics["train_runtime"]` is in seconds. The model is in
    eval mode afterwards."""
    ways = backend(current().backend)
    ways.for_training(trainer.model)
    try:
        return trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    finally:
        ways.for_inference(trainer.model)


def show_training_stats(stats: Any, start_gpu_memory: float = 0.0, max_memory: float = 0.0) -> dict:
    """Print and give how long training took (seconds, minutes) and the most memory (GB) of the GPU: all, that
    of training alone, and both as percentages of `max_memory`. Zeros on a CPU."""
    from quicksviewer.qwen_vl_finetune.utils import calculate_memory_difference, get_gpu_memory_info

    seconds = stats.metrics["train_runtime"]
    peak = (get_gpu_memory_info() or {"max_memory": 0.0})["max_memory"]
    used, used_share = calculate_memory_difference(start_gpu_memory or 0.0, peak, max_memory or 0.0)
    _, share = calculate_memory_difference(0.0, peak, max_memory or 0.0)
    found = dict(seconds=seconds, minutes=round(seconds / 60, 2), peak_gb=peak, peak_percent=share)
    found |= dict(training_gb=max(0.0, used), training_percent=max(0.0, used_share))
    print(f"training took {seconds:.1f} seconds ({found['minutes']} minutes)")
    print(f"peak memory {peak} GB ({share}%), of which training {found['training_gb']} GB")
    return found
