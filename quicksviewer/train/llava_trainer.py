"""transformers' Trainer, with what a video model needs: the gate's noise and penalty, rates per part, an
order of samples that survives a resume, checkpoints that are whole or not there.

Everything else (loop, accumulation, mixed precision, DeepSpeed) is the Trainer's own.
"""

import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from quicksviewer.data.sampler import DealByCost, LengthGroupedSampler
from quicksviewer.data.stream import ORDERS, Order, SampleStream, Share, StepSampler, deal_in_turn
from quicksviewer.model.config import CubingConfig
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.checkpoint import (
    STAGING,
    DataState,
    abandon_later,
    aside,
    check_optimizer,
    keep_newest,
    load_extras,
    publish,
    save_extras,
)
from quicksviewer.train.cost import cost_model
from quicksviewer.train.cube_statistics import check_cubes
from quicksviewer.train.features import FeatureCache
from quicksviewer.train.noise import noise_seed
from quicksviewer.train.optim import param_groups
from quicksviewer.train.statistics import Statistics
from quicksviewer.train.universal import FOLDER, convert, ranks_of, repair_optimizer, shard_folder
from quicksviewer.utils.dist import barrier, is_main
from quicksviewer.utils.registry import lookup


class LLaVATrainer(Trainer):
    """Arguments beyond the Trainer's: cubing (noise schedule and penalty weight of this run), rates (part ->
    learning rate), resolved (the run's settings, written beside every checkpoint), fingerprint (of the data:
    a resumed run must have the same), features (what a frozen tower has seen, if that is kept)."""

    def __init__(
        self,
        *args,
        cubing: CubingConfig,
        rates: dict,
        resolved: dict,
        fingerprint: str = "",
        features: FeatureCache | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.cubing, self.rates, self.resolved, self.fingerprint = cubing, rates, resolved, fingerprint
        self.features = features
        self._gates_in_step, self._micro_step = 1, 0
        self._statistics = Statistics(self.args.device)
        self._generator = torch.Generator(device=self.args.device)
        self._resumed_from: Path | None = None
        self._staging: Path | None = None
        self._is_converted, self._groups = False, []
        self.args.ignore_data_skip = True  # the stream begins at the right place by itself

    # --- data

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the Trainer does; data and optimizer go on where they were, on any number of ranks."""
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        start = self._start_of_data()
        if self._resumed_from is not None:
            check_optimizer(self._resumed_from, self.is_deepspeed_enabled)
        abandon_later(Path(self.args.output_dir), start.step)
        if self._resumed_from is not None and self.is_deepspeed_enabled:
            resume_from_checkpoint = str(self._for_our_ranks(self._resumed_from))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _for_our_ranks(self, checkpoint: Path) -> Path:
        """The checkpoint, or a converted copy of it when another number of ranks wrote its shards."""
        shards = shard_folder(checkpoint)
        if shards is None or ranks_of(shards) == self.args.world_size:
            return checkpoint
        workspace = Path(self.args.output_dir) / STAGING
        if is_main():
            convert(checkpoint, workspace)
        barrier()
        plugin = self.accelerator.state.deepspeed_plugin
        plugin.hf_ds_config.config["checkpoint"] = {"load_universal": True}
        self._is_converted = True
        return workspace / FOLDER

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._is_converted:
            repair_optimizer(self.deepspeed.optimizer, self._groups, self.lr_scheduler.get_last_lr())

    def get_train_dataloader(self) -> DataLoader:
        """This process's micro-batches, from the place in the stream where the run stands.

        The generator is its own, so that starting workers draws nothing from the model's random numbers.
        """
        start = self._start_of_data()
        args, share, length = self.args, self._share(), len(self.train_dataset)
        stream = SampleStream(self._order(start.seed, share), length)
        self._data_start = start
        workers = args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=StepSampler(stream, share, start.position, self._deal()),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            generator=torch.Generator().manual_seed(args.seed),
        )

    def _order(self, seed: int, share: Share) -> Order:
        data = self.train_dataset
        if self.args.group_by_modality_length:
            table, rows = data.table, share.step
            return LengthGroupedSampler(table.tokens, table.modality, rows, self.fingerprint, seed).order
        name = self.args.train_sampling_strategy
        order = lookup(ORDERS, name, "order of samples (--train_sampling_strategy)")
        return order(len(data), self.fingerprint, seed)

    def _deal(self):
        """Which process gets which rows of a step: where their sizes are known, all the same work."""
        sizes = getattr(self.train_dataset, "sizes", None)
        return deal_in_turn if sizes is None else DealByCost(cost_model(self.model)(sizes))

    def _share(self) -> Share:
        args = self.args
        return Share(
            per_device=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index // self.model.team.size,  # a team reads the same rows
            world=args.world_size // self.model.team.size,
        )

    def _start_of_data(self) -> DataState:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        fresh = DataState(
            fingerprint=self.fingerprint,
            rows=len(self.train_dataset),
            seed=seed,
            order=self._order_name(),
            step_rows=self._share().step,
        )
        return fresh if self._resumed_from is None else DataState.load(self._resumed_from).expected_by(fresh)

    def _order_name(self) -> str:
        """What a checkpoint says of the order; one grouped by length depends on what was measured, too."""
        if self.args.group_by_modality_length:
            return f"grouped by modality and length {self.train_dataset.table.digest}"
        return self.args.train_sampling_strategy

    def data_state(self) -> DataState:
        """Where the run stands in the order of samples, after the last whole step."""
        start = self._data_start
        steps = self.state.global_step - start.step
        return start.at(self.state.global_step, start.position + steps * start.step_rows)

    def _prepare_input(self, data):
        """Onto the device in its own precision: under DeepSpeed the Trainer rounds times to bfloat16."""
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    # --- loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and how many tokens and gate frames the whole step has."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        gates = sum(count_gates(batch) for batch in batches)
        total = self.accelerator.gather(torch.tensor([gates], device=device)).sum()
        self._gates_in_step, self._micro_step = total.clamp(min=1), 0
        self._statistics.steps += 1
        if num_items is not None:  # every process of a team has counted the same rows
            num_items = num_items / self.model.team.size
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples, device):
        """What the sum of losses of a step is divided by: its target tokens, or the sum of their weights."""
        if not batch_samples or "loss_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = sum(batch["loss_weights"].sum() for batch in batch_samples)
        return self.accelerator.gather(total.to(device)).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Token loss over the tokens of the whole step, plus the gate's penalty over the gate frames of the
        whole step.

        Both are scaled by the number of processes, because their gradients are averaged over them.
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
        self._statistics.add_cuts(outputs.get("cuts"), inputs.get("frame_times"))
        return (loss, outputs) if return_outputs else loss

    def _noise_inputs(self) -> dict:
        """The gate's noise is a function of seed, step, micro-step and rank: a resumed run draws the same.

        A team draws the same too, because it has to cut the same.
        """
        step, total = self.state.global_step, max(self.state.max_steps, 1)
        data_rank = self.args.process_index // self.model.team.size
        seed = noise_seed(self.args.seed, step, self._micro_step, data_rank)
        self._generator.manual_seed(seed)
        self._micro_step += 1
        return {"noise_weight": self.cubing.noise_weight(step / total), "noise_generator": self._generator}

    # --- logs

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Add the parts of the loss, the cubes' statistics, the noise and the rates to what the Trainer
        logs."""
        if "loss" in logs:
            progress = self.state.global_step / max(self.state.max_steps, 1)
            mm = self.model.mm_config
            logs |= self._statistics.report(mm.tokens_per_cube if mm else 0)
            check_cubes(logs)
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
            self._groups = [
                {key: value for key, value in group.items() if key != "params"}
                for group in self.optimizer.param_groups
            ]
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As the Trainer does; for LoRA also what was trained beside the adapter, which it does not know
        of."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_extras(self.model if model is None else model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model, trial):
        """Written aside by the Trainer, listed, then renamed: a crash leaves the checkpoints before it."""
        run_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        with aside(self, run_dir):
            super()._save_checkpoint(model, trial)
            written = Path(self._get_output_dir(trial)) / name
            if self.args.should_save:
                self.data_state().save(written)
            publish(written, run_dir / name)
        if self.args.should_save:
            keep_newest(run_dir, self.args.save_total_limit)

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save(self, output_dir=None, state_dict=None):
        """Weights as the Trainer writes them; beside them all that a checkpoint needs to explain itself."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in the open
        save_extras(self.model, folder, state_dict)
        (folder / "run.json").write_text(json.dumps(self.resolved, indent=2, default=str) + "\n")


def count_gates(batch: dict) -> int:
    """Frames of a batch that have a gate: all but the first of every video."""
    pairs = zip(batch.get("medium_frames", []), batch.get("medium_is_video", []), strict=True)
    return sum(frames - 1 for frames, is_video in pairs if is_video)
