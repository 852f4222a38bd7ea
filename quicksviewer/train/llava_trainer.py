"""transformers' Trainer, with what a video model needs: the gate's noise and penalty, rates per part, our
checkpoints.

Everything else (loop, accumulation, mixed precision, DeepSpeed, resume) is the Trainer's own.
"""

import json
from pathlib import Path

import torch
from transformers import Trainer

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.checkpoint import load_extras, save_extras
from quicksviewer.train.noise import noise_seed
from quicksviewer.train.optim import param_groups
from quicksviewer.train.statistics import Statistics


class LLaVATrainer(Trainer):
    """Arguments beyond the Trainer's: cubing (noise schedule and penalty weight of this run), rates (part ->
    learning rate), resolved (the run's settings, written beside every checkpoint)."""

    def __init__(self, *args, cubing: CubingConfig, rates: dict, resolved: dict, **kwargs):
        super().__init__(*args, **kwargs)
        self.cubing, self.rates, self.resolved = cubing, rates, resolved
        self._gates_in_step, self._micro_step = 1, 0
        self._statistics = Statistics(self.args.device)
        self._generator = torch.Generator(device=self.args.device)

    # --- loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and how many tokens and gate frames the whole step has."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        gates = sum(count_gates(batch) for batch in batches)
        total = self.accelerator.gather(torch.tensor([gates], device=device)).sum()
        self._gates_in_step, self._micro_step = total.clamp(min=1), 0
        self._statistics.steps += 1
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Token loss over the tokens of the whole step, plus the gate's penalty over the gate frames of the
        whole step.

        Both are scaled by the number of processes, because their gradients are averaged over them.
        """
        if model.training:
            inputs = {**inputs, **self._noise_inputs()}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._statistics.add_loss("loss_tokens", loss)
        if outputs.get("gate_penalty") is not None and model.training:
            scale = self.accelerator.num_processes / self._gates_in_step
            penalty = outputs["gate_penalty"] * scale
            self._statistics.add_loss("loss_gate", penalty)
            loss = loss + self.cubing.aux_weight * penalty
        self._statistics.add_cuts(outputs.get("cuts"))
        return (loss, outputs) if return_outputs else loss

    def _noise_inputs(self) -> dict:
        """The gate's noise is a function of seed, step, micro-step and rank: a resumed run draws the same."""
        step, total = self.state.global_step, max(self.state.max_steps, 1)
        seed = noise_seed(self.args.seed, step, self._micro_step, self.args.process_index)
        self._generator.manual_seed(seed)
        self._micro_step += 1
        return {"noise_weight": self.cubing.noise_weight(step / total), "noise_generator": self._generator}

    # --- logs

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Add the parts of the loss, the cubes' statistics, the noise and the rates to what the Trainer
        logs."""
        if "loss" in logs:
            progress = self.state.global_step / max(self.state.max_steps, 1)
            logs |= self._statistics.report()
            logs |= {"noise_weight": self.cubing.noise_weight(progress), **self._rates()}
        super().log(logs, *args, **kwargs)

    def _rates(self) -> dict[str, float]:
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return {f"lr/{group['part']}": float(group["lr"]) for group in groups if "part" in group}

    # --- optimizer and checkpoints

    def create_optimizer(self, model=None):
        """AdamW or whatever `--optim` names, over groups with the rates of their parts."""
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = param_groups(model, self.args.learning_rate, self.args.weight_decay, self.rates, PARTS)
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As the Trainer does; for LoRA also what was trained beside the adapter, which it does not know
        of."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_extras(self.model if model is None else model, Path(resume_from_checkpoint))

    def _save(self, output_dir=None, state_dict=None):
        """Weights as the Trainer writes them; beside them all that a checkpoint needs to explain itself."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in the open
        save_extras(self.model, folder, state_dict)
        (folder / "run.json").write_text(json.dumps(self.resolved, indent=2, default=str) + "\n")


def count_gates(batch: dict) -> int:
    """Frames of a batch that have a gate: all but the first of every video."""
    pairs = zip(batch.get("medium_frames", []), batch.get("medium_is_video", []), strict=True)
    return sum(frames - 1 for frames, is_video in pairs if is_video)
