"""DataPipeline: from one YAML file to data sets and loaders of train, validation and test."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from quicksviewer.data.mixture import spread_subset
from quicksviewer.data.pipeline.collate import PipelineCollator
from quicksviewer.data.pipeline.config import SPLITS, BadRowsConfig, PipelineConfig
from quicksviewer.data.pipeline.dataset import EpochSampler, PipelineDataset
from quicksviewer.data.pipeline.encode import Encoder
from quicksviewer.data.pipeline.processors import load_image_processor, load_tokenizer
from quicksviewer.data.pipeline.sources import Joined, open_joined
from quicksviewer.data.pipeline.splits import balance, cut
from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils.registry import lookup
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)
NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""What a split may be called."""
LOOKED_AT = 1000
"""Rows that the statistics of a split read, at most."""


class DataPipeline:
    """`config`: path of a YAML file, or a PipelineConfig. Use it after `setup()`.

    processor: a model's own (with `tokenizer` and `image_processor`), in place of those that the YAML names.
    decoder_start: the id with which the model's decoder begins to write. It is only needed where labels alone
    do not tell the model: those of quicksviewer.zoo put their own start in its place.
    """

    def __init__(
        self, config: str | os.PathLike | PipelineConfig, processor=None, decoder_start: int | None = None
    ):
        self.config = config if isinstance(config, PipelineConfig) else PipelineConfig.load(config)
        self.processor, self.decoder_start = processor, decoder_start
        self.tokenizer: Any = None
        self.image_processor: Any = None
        self.datasets: dict[str, PipelineDataset] | None = None

    # --- setup

    def setup(self) -> None:
        """Read the processor, find the rows, cut the splits. ValueError for what the YAML names and is not
        there; SampleError where a row that a split must look at is none."""
        config = self.config
        logging.getLogger("quicksviewer.data.pipeline").setLevel(config.logging.level.upper())
        if self.processor is not None:
            self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor
        else:
            self.tokenizer = load_tokenizer(config.tokenizer)
            self.image_processor = load_image_processor(config.image_processor, config.tokenizer.name)
        self.encoder = Encoder(config, self.tokenizer, self.image_processor, self.decoder_start)
        self.datasets = {}
        for split, (source, rows) in self._splits().items():
            # A figure over other rows than those asked for would be wrong: only train may replace any.
            bad = config.bad_rows if split == "train" else BadRowsConfig()
            self.datasets[split] = PipelineDataset(source, rows, config, self.encoder, bad)
        if config.logging.log_statistics:
            for line in self.statistics():
                logger.info(line)

    def _splits(self) -> dict[str, tuple[Joined, np.ndarray]]:
        """Split -> source and its rows in it, of those that there are."""
        paths, streamed = self.config.data_paths, self.config.optimization.use_streaming
        sources = {
            split: open_joined(paths.of(split), in_order=streamed and split == "train")
            for split in SPLITS
            if paths.of(split)
        }
        found = {split: (source, np.arange(len(source))) for split, source in sources.items()}
        if self.config.data_split.auto_split:
            found |= self._cut(sources["train"], [split for split in SPLITS if split not in sources])
        if self.config.balance.enabled and "train" in found:
            source, rows = found["train"]
            field, strategy = self.config.balance.label_field, self.config.balance.strategy
            values = self._values(source, rows, field)
            found["train"] = source, balance(rows, values, strategy, source.fingerprint, self.config.seed)
        return {split: found[split] for split in SPLITS if split in found}

    def _cut(self, source: Joined, missing: list[str]) -> dict[str, tuple[Joined, np.ndarray]]:
        """Train and the splits that have no path of their own, from the rows of train."""
        options = self.config.data_split
        ratios = {name: ratio for name, ratio in options.ratios().items() if name in ("train", *missing)}
        if not ratios["train"]:
            raise ValueError("data_split > train_ratio is 0: nothing would be left to learn")
        rows = np.arange(len(source))
        fields = {"values": options.stratify_by, "groups": options.group_by}
        read = {key: self._values(source, rows, name) for key, name in fields.items() if name}
        cuts = cut(
            len(source), ratios, source.fingerprint, options.random_seed, shuffle=options.shuffle, **read
        )
        for name, own in cuts.items():
            if ratios[name] and not len(own):
                raise ValueError(f"{len(source)} rows are too few: auto_split left none for {name}")
        return {name: (source, own) for name, own in cuts.items() if ratios[name]}

    def _values(self, source: Joined, rows: np.ndarray, field: str) -> list[str]:
        """The value of a field in each of these rows, as text. Rows that cannot be read share one value where
        the policy is to quarantine them."""
        values = []
        for row in rows.tolist():
            try:
                record, where = source[row]
                if field not in record:
                    raise SampleError(where, f"no field {field!r}; it has: {', '.join(map(str, record))}")
                values.append(str(record[field]))
            except SampleError:
                if self.config.bad_rows.policy == "error":
                    raise
                values.append("")
        return values

    # --- use

    def get_dataset(self, split: str = "train") -> PipelineDataset:
        """The examples of a split. ValueError where the YAML gives it no rows."""
        if self.datasets is None:
            raise RuntimeError("the pipeline has no data yet: call setup() first")
        name = lookup(NAMES, split, "split")
        if name not in self.datasets:
            raise ValueError(
                f"there is no split {split!r}, only {', '.join(self.datasets)}: data_paths > {name} names no "
                "rows, and data_split > auto_split is off or gives it none"
            )
        return self.datasets[name]

    @property
    def collator(self) -> PipelineCollator:
        """What makes a batch of a data set's items."""
        fixed = self.config.tokenizer.padding == "max_length"
        lengths = (self.encoder.max_text, self.encoder.max_target) if fixed else (None, None)
        return PipelineCollator(
            pad_id=self.tokenizer.pad_token_id,
            has_start=self.decoder_start is not None,
            to_text=lengths[0],
            to_target=lengths[1],
        )

    def get_dataloader(self, split: str = "train") -> DataLoader:
        """Batches of a split (collate.py says what is in them). Those of train come in another order each
        time they are gone through; they are the same for any number of workers, which stay for all epochs,
        with their caches."""
        data, options = self.get_dataset(split), self.config.dataloader
        is_train = NAMES[split] == "train"
        reach = self.config.optimization.shuffle_buffer if self.config.optimization.use_streaming else None
        shuffles = is_train and options.shuffle
        return DataLoader(
            data,
            batch_size=options.batch_size,
            sampler=EpochSampler(len(data), data.fingerprint, self.config.seed, reach) if shuffles else None,
            num_workers=options.num_workers,
            persistent_workers=options.num_workers > 0,
            pin_memory=options.pin_memory and torch.cuda.is_available(),
            drop_last=options.drop_last and is_train,
            collate_fn=self.collator,
            generator=torch.Generator().manual_seed(self.config.seed),
        )

    def get_train_dataloader(self) -> DataLoader:
        return self.get_dataloader("train")

    def get_val_dataloader(self) -> DataLoader:
        return self.get_dataloader("validation")

    def get_test_dataloader(self) -> DataLoader:
        return self.get_dataloader("test")

    def statistics(self) -> list[str]:
        """A line for each split: its size, and what is learned most often in it."""
        return [self._line(split, data) for split, data in (self.datasets or {}).items()]

    def _line(self, split: str, data: PipelineDataset) -> str:
        seen, bad = Counter(), 0
        for index in spread_subset(len(data), min(len(data), LOOKED_AT)).tolist():
            try:
                example = data.example(index)
            except SampleError:
                bad += 1
                continue
            seen[example.target if example.label is None else str(example.label)] += 1
        total = max(sum(seen.values()), 1)
        common = ", ".join(f"{name!r} {n / total:.0%}" for name, n in seen.most_common(5) if name is not None)
        files = ", ".join(Path(source.path).name for source in data.source.sources)
        line = f"{split}: {len(data)} examples of {files}"
        line += f"; of {total} looked at: {common}" if common else ""
        return line + (f"; {bad} cannot be used" if bad else "")
