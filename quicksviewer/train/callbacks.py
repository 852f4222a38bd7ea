"""Callbacks of one concern each."""

from transformers import TrainerCallback


class CheckGradients(TrainerCallback):
    """After the first backward pass: what is trainable has a gradient, what is frozen has none.

    With ZeRO-2 and ZeRO-3 gradients live in DeepSpeed's buffers, and there is nothing to look at; the table test over
    stages and backbones covers the same rule there.
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
