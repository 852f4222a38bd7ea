"""A step of stage 1 with the tower's tokens from disk, against one that decodes and looks (P18).

    python benchmarks/feature_cache.py [--repeats 7]

The tower has most of the work, as in stage 1. The losses are held against each other first. The first epoch,
which writes the features, is timed beside. Prints one JSON; the target is 2 at the lower end.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

import torch
from common import interleaved, ratio_row, seconds_of
from toy_world import make_data, make_model, mixture

from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.features import FeatureStore, tower_digest
from quicksviewer.train.features import FeatureCache
from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.utils.modules import train_only

LM = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=3)
TOWER = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=6)
ROWS = 4


class Steps:
    """The same step on the same rows: without a store, with an empty one, with a full one."""

    def __init__(self, root: Path):
        loaded = make_model(root / "models", LM, TOWER)
        self.model = loaded.model.train()
        train_only(self.model, trainable_prefixes(self.model, "stage1"))
        self.data = LazySupervisedDataset(mixture(root / "data", "captions"), loaded.processor, 4096)
        self.collate = DataCollatorForSupervisedDataset(loaded.processor.pad_id)
        self.root, self.digest = root, tower_digest(self.model.vision_tower)

    def run(self, store: FeatureStore | None) -> float:
        """Load, look, loss, gradients; the loss."""
        self.data.features = store
        batch = self.collate([self.data.load(index) for index in range(ROWS)])
        batch.pop("groups")
        if store is not None:
            batch = FeatureCache(self.model.vision_tower, store).complete(batch, contextlib.nullcontext)
        loss = self.model(**batch).loss
        loss.backward()
        self.model.zero_grad()
        return loss.item()

    def store(self, name: str) -> FeatureStore:
        return FeatureStore(self.root / name, tower=self.digest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root / "data")
        steps = Steps(root)
        plain, filling = steps.run(None), steps.run(steps.store("full"))
        assert plain == filling == steps.run(steps.store("full")), "the same loss, bit for bit"
        full = steps.store("full")
        times = interleaved({"off": lambda: steps.run(None), "on": lambda: steps.run(full)}, repeats)
        first = [seconds_of(lambda n=n: steps.run(steps.store(f"new{n}"))) for n in range(3)]
        out = {"rows": ROWS, "threads": 1, "loss": plain, **ratio_row(times["off"], times["on"], 2.0)}
        out["first_epoch_s"] = [round(value, 5) for value in first]
        out["mib_on_disk"] = round(
            sum(p.stat().st_size for p in full.folder.rglob("*.safetensors")) / 2**20, 2
        )
    print(json.dumps(out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
