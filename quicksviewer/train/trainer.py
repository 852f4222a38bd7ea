"""transformers' Trainer, with what every run of this project needs: an order of samples that survives a
resume, checkpoints that are whole or not there, rates per part of the model.

Everything else (loop, accumulation, mixed precision, DeepSpeed) is the Trainer's own. What one kind of model
needs beyond that is in a subclass: llava_trainer.py, vision_language.py.
"""

import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from quicksviewer.data.stream import ORDERS, Order, SampleStream, Share, StepSampler, deal_in_turn
from quicksviewer.train.checkpoint import (
    STAGING,
    DataState,
    abandon_later,
    aside,
    check_optimizer,
    keep_newest,
    publish,
)
from quicksviewer.train.optim import param_groups
from quicksviewer.train.universal import FOLDER, convert, ranks_of, repair_optimizer, shard_folder
from quicksviewer.utils.dist import barrier, is_main
from quicksviewer.utils.registry import lookup


class StageTrainer(Trainer):
    """Arguments beyond the Trainer's: parts (of the model: name -> dotted prefixes of parameters), rates
    (part -> learning rate), resolved (the run's settings, written beside every checkpoint), fingerprint (of
    the data: a resumed run must have the same)."""

    def __init__(self, *args, parts: dict, rates: dict, resolved: dict, fingerprint: str = "", **kwargs):
        super().__init__(*args, **kwargs)
        self.parts, self.rates, self.resolved, self.fingerprint = parts, rates, resolved, fingerprint
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
        name = self.args.train_sampling_strategy
        order = lookup(ORDERS, name, "order of samples (--train_sampling_strategy)")
        return order(len(self.train_dataset), self.fingerprint, seed)

    def _order_name(self) -> str:
        """What a checkpoint says of the order."""
        return self.args.train_sampling_strategy

    def _deal(self):
        """Which process gets which rows of a step."""
        return deal_in_turn

    @property
    def team_size(self) -> int:
        """Processes that read the same rows."""
        return 1

    def _share(self) -> Share:
        args = self.args
        return Share(
            per_device=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index // self.team_size,
            world=args.world_size // self.team_size,
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

    def data_state(self) -> DataState:
        """Where the run stands in the order of samples, after the last whole step."""
        start = self._data_start
        steps = self.state.global_step - start.step
        return start.at(self.state.global_step, start.position + steps * start.step_rows)

    def _prepare_input(self, data):
        """Onto the device in its own precision: under DeepSpeed the Trainer rounds times to bfloat16."""
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    # --- logs

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Add the rates of the parts to what the Trainer logs."""
        if "loss" in logs:
            logs |= self._rates()
        super().log(logs, *args, **kwargs)

    def _rates(self) -> dict[str, float]:
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return {f"lr/{group['part']}": float(group["lr"]) for group in groups if "part" in group}

    # --- optimizer and checkpoints

    def create_optimizer(self, model=None):
        """AdamW or whatever `--optim` names, over groups with the rates of their parts."""
        if self.optimizer is None:
            model, args = self.model if model is None else model, self.args
            groups = param_groups(model, args.learning_rate, args.weight_decay, self.rates, self.parts)
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer = optimizer_class(groups, **kwargs)
            self._groups = [
                {key: value for key, value in group.items() if key != "params"}
                for group in self.optimizer.param_groups
            ]
        return self.optimizer

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
        """Weights as the Trainer writes them; beside them the settings of the run."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in the open
        (folder / "run.json").write_text(json.dumps(self.resolved, indent=2, default=str) + "\n")
