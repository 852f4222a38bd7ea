"""Callbacks of one concern each."""

import signal

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from quicksviewer.train.cube_statistics import CubeStatistics, refuse_broken_counts


class CheckGradients(TrainerCallback):
    """After the first backward pass: what is trainable has a gradient, what is frozen has none.

    With ZeRO-2 and ZeRO-3 gradients live in DeepSpeed's buffers, and there is nothing to look at; the table
    test over stages and backbones covers the same rule there.
    """

    def __init__(self):
        self.done = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.done or args.deepspeed:
            return
        self.done = True
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if without:
            raise RuntimeError(f"{len(without)} trainable parameters got no gradient, such as {without[:3]}")
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
        if frozen:
            raise RuntimeError(f"{len(frozen)} frozen parameters got a gradient, such as {frozen[:3]}")


class StopOnSignal(TrainerCallback):
    """SIGTERM or SIGINT ends the run after the current step, with a checkpoint; a second one ends it at once.

    Ranks receive a signal at different instants, so they agree after every step whether anyone has.
    """

    def __init__(self):
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, _frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        if dist.is_initialized():
            anyone = torch.tensor(int(self.asked), device=args.device)
            dist.all_reduce(anyone, dist.ReduceOp.MAX)
            self.asked = bool(anyone)
        if self.asked:
            control.should_save = control.should_training_stop = True


class StopOnBrokenFeatures(TrainerCallback):
    """Ends the run at the step whose features or gates are no finite numbers, by name.

    Nothing waits for a device: what it has counted is copied while it works, and looked at when it is there,
    which is mostly one step later. What is not there in time is found at the next log line.
    """

    def __init__(self, cubes: CubeStatistics):
        self.cubes = cubes
        self._copy: tuple[torch.Tensor, torch.cuda.Event, int] | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if self._copy is not None and self._copy[1].query():
            self._look()
        if self._copy is None:
            self._begin(self.cubes.broken(), state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        if self._copy is not None:
            self._copy[1].synchronize()
            self._look()

    def _begin(self, counts: torch.Tensor, step: int) -> None:
        if counts.device.type != "cuda":
            refuse_broken_counts(counts.tolist(), f"step {step}")
            return
        copy = torch.empty(counts.shape, pin_memory=True)
        copy.copy_(counts, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._copy = copy, event, step

    def _look(self) -> None:
        counts, _, step = self._copy
        self._copy = None
        refuse_broken_counts(counts.tolist(), f"step {step}")
