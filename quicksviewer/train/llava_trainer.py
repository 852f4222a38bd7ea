"""The trainer of the video model: the gate's noise and penalty, statistics of cubes, rows ordered by length,
teams that share rows, what a frozen tower has seen, LoRA checkpoints that lack nothing."""

from pathlib import Path

import torch

from quicksviewer.data.sampler import DealByCost, LengthGroupedSampler
from quicksviewer.data.stream import Order, Share, deal_in_turn
from quicksviewer.model.config import CubingConfig
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.callbacks import StopOnBrokenFeatures
from quicksviewer.train.checkpoint import load_extras, save_extras, with_frozen
from quicksviewer.train.cost import cost_model
from quicksviewer.train.cube_statistics import check_cubes
from quicksviewer.train.features import FeatureCache
from quicksviewer.train.noise import noise_seed
from quicksviewer.train.router import RouterLoss
from quicksviewer.train.statistics import Statistics
from quicksviewer.train.trainer import StageTrainer


class LLaVATrainer(StageTrainer):
    """Arguments beyond those of StageTrainer: cubing (noise schedule and penalty weight of this run),
    features (what a frozen tower has seen, if that is kept)."""

    def __init__(self, *args, cubing: CubingConfig, features: FeatureCache | None = None, **kwargs):
        super().__init__(*args, parts=PARTS, **kwargs)
        self.cubing, self.features = cubing, features
        self._gates_in_step, self._micro_step = 1, 0
        self._statistics, self._routers = Statistics(self.args.device), RouterLoss(self.model.config)
        self._generator = torch.Generator(device=self.args.device)
        self.add_callback(StopOnBrokenFeatures(self._statistics.cubes))

    # --- data

    @property
    def team_size(self) -> int:
        return self.model.team.size

    def _order(self, seed: int, share: Share) -> Order:
        if self.args.group_by_modality_length:
            table, rows = self.train_dataset.table, share.step
            return LengthGroupedSampler(table.tokens, table.modality, rows, self.fingerprint, seed).order
        return super()._order(seed, share)

    def _order_name(self) -> str:
        """An order by length depends on what was measured, too."""
        if self.args.group_by_modality_length:
            return f"grouped by modality and length {self.train_dataset.table.digest}"
        return super()._order_name()

    def _deal(self):
        """Where the sizes of rows are known, all processes get the same work."""
        data = self.train_dataset
        if (sizes := getattr(data, "sizes", None)) is None:
            return deal_in_turn
        return DealByCost(cost_model(self.model)(sizes, data.megapixels))

    # --- loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and how many tokens and gate frames the whole step has."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        gates = sum(count_gates(batch) for batch in batches)
        total = self.accelerator.gather(torch.tensor([gates], device=device)).sum()
        self._gates_in_step, self._micro_step = total.clamp(min=1), 0
        self._statistics.steps += 1
        self._routers.begin_step(batches, self.accelerator.gather, device)
        if num_items is not None:  # every process of a team has counted the same rows
            num_items = num_items / self.team_size
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples, device):
        """What the sum of losses of a step is divided by: its target tokens, or the sum of their weights."""
        if not batch_samples or "loss_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = sum(batch["loss_weights"].sum() for batch in batch_samples)
        return self.accelerator.gather(total.to(device)).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Token loss over the tokens of the whole step, plus the gate's penalty over the gate frames of the
        whole step, plus the routers' loss over its documents.

        All are scaled by the number of processes, because their gradients are averaged over them.
        """
        groups = inputs.pop("groups", None)
        if self.features is not None:
            inputs = self.features.complete(inputs, self.accelerator.autocast)
        if model.training:
            inputs = {**inputs, **self._noise_inputs()}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._statistics.add_loss("loss_tokens", loss)
        if groups is not None and model.training:
            self._statistics.add_groups(outputs.get("token_losses"), inputs, groups)
        if outputs.get("gate_penalty") is not None and model.training:
            scale = self.accelerator.num_processes / self._gates_in_step
            penalty = outputs["gate_penalty"] * scale
            self._statistics.add_loss("loss_gate", penalty)
            loss = loss + self.cubing.aux_weight * penalty
        router = self._routers.term(outputs, inputs, self.accelerator.num_processes)
        loss = loss if router is None else loss + router
        pixels = inputs.get("pixel_values")
        pixels = pixels if pixels is not None and pixels.ndim == 4 else None  # stored features have none
        self._statistics.add_cuts(outputs.get("cuts"), inputs.get("frame_times"), pixels)
        return (loss, outputs) if return_outputs else loss

    def _noise_inputs(self) -> dict:
        """The gate's noise is a function of seed, step, micro-step and rank: a resumed run draws the same.

        A team draws the same too, because it has to cut the same.
        """
        step, total = self.state.global_step, max(self.state.max_steps, 1)
        data_rank = self.args.process_index // self.team_size
        seed = noise_seed(self.args.seed, step, self._micro_step, data_rank)
        self._generator.manual_seed(seed)
        self._micro_step += 1
        return {"noise_weight": self.cubing.noise_weight(step / total), "noise_generator": self._generator}

    # --- logs and checkpoints

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Add the parts of the loss, the cubes' statistics and the noise to what is logged."""
        if "loss" in logs:
            progress = self.state.global_step / max(self.state.max_steps, 1)
            mm = self.model.mm_config
            logs |= self._statistics.report(mm.tokens_per_cube if mm else 0) | self._routers.report()
            check_cubes(logs)
            logs["noise_weight"] = self.cubing.noise_weight(progress)
        super().log(logs, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As the Trainer does; for LoRA also what was trained beside the adapter, which it does not know
        of."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_extras(self.model if model is None else model, Path(resume_from_checkpoint))

    def _save(self, output_dir=None, state_dict=None):
        """With what a LoRA checkpoint needs beside PEFT's files."""
        super()._save(output_dir, state_dict)
        state_dict = with_frozen(self.model, state_dict)
        if self.args.should_save:
            save_extras(self.model, Path(output_dir or self.args.output_dir), state_dict)


def count_gates(batch: dict) -> int:
    """Frames of a batch that have a gate: all but the first of every video."""
    pairs = zip(batch.get("medium_frames", []), batch.get("medium_is_video", []), strict=True)
    return sum(frames - 1 for frames, is_video in pairs if is_video)
