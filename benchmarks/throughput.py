"""Useful tokens a second of our trainer against a plain transformers.Trainer, same model, rows and machine.

    python benchmarks/throughput.py [--size tiny|100m] [--repeats 5]

Ours: packed rows, the loss without all logits, frames through the tower together. The plain trainer: random
order, rows padded to the longest of their batch, full logits, each frame through the tower by itself, as
scripts of video models are written. Both take the same epochs of stage 3 over the same rows with as many rows
a step, AdamW, float32, on the model's own weights, in turns. Useful tokens are those of the rows, without
padding; targets those that are learned. Prints one JSON; the target is 2 at the lower end.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import transformers
from common import interleaved, ratio_row
from toy_world import make_data, make_model, mixture

from quicksviewer.data.collator import DataCollatorForSupervisedDataset, targets_of
from quicksviewer.data.dataset import LazySupervisedDataset, PackedDataset
from quicksviewer.data.lengths import size_table
from quicksviewer.data.packing import Caps
from quicksviewer.model.documents import attend_by_document
from quicksviewer.train.args import TrainingArguments
from quicksviewer.train.llava_trainer import LLaVATrainer
from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.utils.modules import count_parameters, train_only

SHAPES = {
    "tiny": ({}, {}, 48, 5),
    "100m": (
        dict(
            vocab_size=32_000,
            hidden_size=640,
            intermediate_size=1920,
            num_hidden_layers=12,
            num_attention_heads=10,
            num_key_value_heads=5,
        ),
        dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=6),
        8,
        1,
    ),
}
"""Size -> shape of the language model (default: that of recipe tiny) and of the tower; rows of an epoch,
epochs. The larger one has the vocabulary of a LLaMA, of which the rows use a little. The small one takes
several epochs, so that what a call of `train` costs once (a garbage collection of half a second) does not
hide its rate."""
DATA = "captions,questions,images,texts"
BATCH = 8
STAGE = "stage3"


class First(torch.utils.data.Dataset):
    """Some rows of a data set, spread over it, without what only our trainer reads."""

    def __init__(self, data, indices):
        self.data, self.indices = data, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.data.load(self.indices[index])


class PlainTrainer(transformers.Trainer):
    """transformers' trainer; the collator's host-side names are the only thing it would stumble over."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(
            model, {k: v for k, v in inputs.items() if k != "groups"}, *args, **kwargs
        )


def frame_by_frame(tower) -> None:
    """Let a tower look at one frame at a time."""
    together = tower.forward
    tower.forward = lambda pixels, min_chunks=1: torch.cat([together(frame[None]) for frame in pixels])


class Rounds:
    """The epochs of each trainer over the same rows, each with a model of its own from the same weights."""

    def __init__(self, root: Path, size: str):
        self.root = root
        self.lm, self.tower, rows, self.epochs = SHAPES[size]
        make_data(root / "data")
        self.ours, self.plain = self._model(), self._model()
        frame_by_frame(self.plain.model.vision_tower)
        attend_by_document(self.ours.model.config)
        self.plain.model.linear_loss = False
        mix = mixture(root / "data", DATA)
        self.lazy = LazySupervisedDataset(mix, self.ours.processor, 4096)
        step = max(1, len(mix) // rows)
        self.indices = list(range(len(mix)))[::step][:rows]
        mix_of_rows = _Chosen(mix, self.indices)
        batch = DataCollatorForSupervisedDataset(0)([self.lazy.load(i) for i in self.indices])
        self.tokens, self.targets = int(batch["attention_mask"].sum()), int(targets_of(batch["labels"]).sum())
        caps = Caps(tokens=max(-(-self.tokens * BATCH // rows), batch["input_ids"].shape[1]))
        table = size_table(mix_of_rows, self.ours.processor, caps)
        self.packed = PackedDataset(mix_of_rows, self.ours.processor, caps, table)
        self.trainers = {"plain": self._plain(), "ours": self._ours()}

    def _model(self):
        loaded = make_model(self.root / "models", self.lm, self.tower)
        train_only(loaded.model, trainable_prefixes(loaded.model, STAGE))
        loaded.model.config.use_cache = False
        return loaded

    def _arguments(self, cls, batch: int):
        given = dict(
            num_train_epochs=self.epochs, per_device_train_batch_size=batch, learning_rate=1e-4, use_cpu=True
        )
        quiet = dict(report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no")
        return cls(
            output_dir=str(self.root / "out"), remove_unused_columns=False, **given, **quiet,
            dataloader_pin_memory=False,
        )  # fmt: skip

    def _ours(self) -> LLaVATrainer:
        model = self.ours.model
        return LLaVATrainer(
            model=model,
            args=self._arguments(TrainingArguments, 1),
            train_dataset=self.packed,
            data_collator=DataCollatorForSupervisedDataset(self.ours.processor.pad_id),
            cubing=model.mm_config.cubing,
            rates={},
            resolved={},
            fingerprint=self.packed.fingerprint,
        )

    def _plain(self) -> PlainTrainer:
        return PlainTrainer(
            model=self.plain.model,
            args=self._arguments(transformers.TrainingArguments, BATCH),
            train_dataset=First(self.lazy, self.indices),
            data_collator=DataCollatorForSupervisedDataset(self.plain.processor.pad_id),
        )

    def check(self) -> dict:
        """Mean loss per target over all rows, of both ways to compute it, before any training."""
        rows = DataCollatorForSupervisedDataset(0)([self.lazy.load(i) for i in self.indices])
        packs = DataCollatorForSupervisedDataset(0)([self.packed.load_at(p) for p in range(len(self.packed))])
        losses = {}
        for name, loaded, batch in (("plain", self.plain, rows), ("ours", self.ours, packs)):
            batch.pop("groups")
            with torch.no_grad():
                losses[name] = loaded.model.train()(**batch).loss.item()
        assert abs(losses["ours"] - losses["plain"]) < 1e-4 * losses["plain"], losses
        return losses


class _Chosen:
    """Some rows of a mixture as a mixture."""

    def __init__(self, mix, indices):
        self.mix, self.indices, self.fingerprint = mix, indices, mix.fingerprint

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.mix[self.indices[index]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(Path(folder), args.size)
        out = {"size": args.size, "parameters": count_parameters(rounds.ours.model)}
        out |= {
            "rows": len(rounds.indices),
            "epochs": rounds.epochs,
            "tokens": rounds.tokens,
            "targets": rounds.targets,
        }
        out |= {"packs": len(rounds.packed), "loss": rounds.check()}
        times = interleaved({name: trainer.train for name, trainer in rounds.trainers.items()}, args.repeats)
    row = ratio_row(times["plain"], times["ours"], 2.0)
    for name, seconds in (("plain", row["peer_s"]), ("ours", row["ours_s"])):
        seen = rounds.epochs / seconds
        out[f"{name}_per_s"] = {k: round(out[k] * seen, 1) for k in ("tokens", "targets")}
    print(json.dumps(out | row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
