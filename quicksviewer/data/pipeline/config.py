"""What a pipeline's YAML file may say: one frozen dataclass for each of its sections.

Paths are used as they are written, from the folder in which the program runs. An unknown key is an error that
names the nearest known one.
"""

import math
import os
from dataclasses import dataclass, field
from typing import Literal

from quicksviewer.data.pipeline.transforms import IMAGE_STEPS, TEXT_STEPS
from quicksviewer.utils.config import build, load_mapping
from quicksviewer.utils.registry import lookup

SPLITS = ("train", "validation", "test")
PathOrPaths = str | tuple[str, ...] | None


def positive(where: object, *names: str) -> None:
    """ValueError where a number that is given is not at least 1."""
    for name in names:
        value = getattr(where, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class DataPaths:
    """Where the rows of each split lie: a file or folder of a kind in sources.py, or a list of them."""

    train: PathOrPaths = None
    """Learned from."""
    validation: PathOrPaths = None
    """For choices on the way; code may call it `val`."""
    test: PathOrPaths = None
    """For the figures that are told."""

    def __post_init__(self):
        if not any(self.of(split) for split in SPLITS):
            raise ValueError("no split has a path")

    def of(self, split: str) -> tuple[str, ...]:
        said = getattr(self, split)
        return (said,) if isinstance(said, str) else tuple(said or ())


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """How splits without a path of their own are cut from the rows of `train`."""

    auto_split: bool = False
    """Cut the splits that have no path from the rows of `train`."""
    train_ratio: float = 0.8
    """Share of the rows that stays in train. The three ratios add up to 1."""
    val_ratio: float = 0.1
    """Share of validation."""
    test_ratio: float = 0.1
    """Share of test. A split with a path of its own takes no share: the others keep their proportion."""
    shuffle: bool = True
    """Off: the first rows are train, the last ones test."""
    random_seed: int = 42
    """Of the splits, of balancing and of the order of every epoch."""
    stratify_by: str | None = None
    """A field of which every value has its share in every split."""
    group_by: str | None = None
    """A field (such as the picture) whose rows with one value stay together."""

    def __post_init__(self):
        ratios = self.ratios()
        if min(ratios.values()) < 0 or not math.isclose(sum(ratios.values()), 1, abs_tol=1e-6):
            raise ValueError(f"train_ratio, val_ratio and test_ratio must add up to 1, got {ratios}")
        if self.stratify_by and self.group_by:
            raise ValueError("give stratify_by or group_by: rows that stay together cannot be shared out")
        if (self.stratify_by or self.group_by) and not self.shuffle:
            raise ValueError("stratify_by and group_by choose among shuffled rows: shuffle must be true")

    def ratios(self) -> dict[str, float]:
        return {"train": self.train_ratio, "validation": self.val_ratio, "test": self.test_ratio}


@dataclass(frozen=True, kw_only=True)
class VqaFields:
    """What the fields of a row are called."""

    image_field: str = "image"
    """A path, bytes, a data URL or base64."""
    question_field: str = "question"
    """A text."""
    answer_field: str = "answer"
    """A text, or a list of the answers of several people: the most frequent one is learned."""


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """Questions about pictures. Lengths are in tokens, with the special ones."""

    data_fields: VqaFields = field(default_factory=VqaFields)
    max_question_length: int | None = None
    """Of the question; not given: that of the tokenizer."""
    max_answer_length: int | None = None
    """Of the answer; not given: that of the tokenizer."""

    def __post_init__(self):
        positive(self, "max_question_length", "max_answer_length")


@dataclass(frozen=True, kw_only=True)
class CaptionFields:
    """What the fields of a row are called."""

    image_field: str = "image"
    """As in `vqa`."""
    caption_field: str = "caption"
    """A text, or with `multiple_captions` a list of them."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Pictures and what is said about them."""

    data_fields: CaptionFields = field(default_factory=CaptionFields)
    max_caption_length: int | None = None
    """In tokens, with the special ones; not given: that of the tokenizer."""
    multiple_captions: bool = False
    """A list of captions makes an example of each; off: a list is a bad row."""

    def __post_init__(self):
        positive(self, "max_caption_length")


@dataclass(frozen=True, kw_only=True)
class RetrievalFields:
    """What the fields of a row are called."""

    image_field: str = "image"
    """As in `vqa`."""
    text_field: str = "text"
    """A text."""
    label_field: str | None = None
    """1 where picture and text belong together, 0 where not. None: all do, and batches have no labels."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Pictures and texts that belong together or not."""

    data_fields: RetrievalFields = field(default_factory=RetrievalFields)
    max_text_length: int | None = None
    """In tokens, with the special ones; not given: that of the tokenizer."""

    def __post_init__(self):
        positive(self, "max_text_length")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What turns texts into tokens."""

    name: str | None = None
    """Folder of a tokenizer or of a model's checkpoint, or a model's name on the hub."""
    local_files_only: bool = True
    """Nothing is downloaded: a name on the hub is read from transformers' cache. Off: from the hub, too."""
    type: Literal["auto", "bert"] = "auto"
    """Which class reads the folder: what it says itself, or transformers' BertTokenizer."""
    max_length: int | None = None
    """Of every text for which the task says no length of its own; not given: the tokenizer's own
    `model_max_length`, if it has one."""
    padding: Literal["longest", "max_length"] = "longest"
    """To the longest text of the batch, or all to the limit of their length."""
    truncation: bool = True
    """Cut a text that is too long. Off: it makes a bad row."""

    def __post_init__(self):
        positive(self, "max_length")


@dataclass(frozen=True, kw_only=True)
class ImageProcessorConfig:
    """What turns pictures into numbers."""

    name: str | None = None
    """Folder of an image processor; not given: that of the tokenizer, where `type` is auto."""
    type: Literal["auto", "blip", "clip"] = "auto"
    """auto: the class that the folder says. blip, clip: that class, read from `name` or made with `size`."""
    size: int | None = None
    """Sides of the square that pictures become, in place of the folder's."""
    local_files_only: bool = True
    """As that of the tokenizer."""

    def __post_init__(self):
        positive(self, "size")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Where the pictures lie."""

    root_dir: str | None = None
    """Folder of the pictures, which their paths may not leave; not given: that of the data file, and
    absolute paths are taken as they are."""


@dataclass(frozen=True, kw_only=True)
class DataloaderConfig:
    """How rows become batches."""

    batch_size: int = 8
    """Rows of a batch."""
    shuffle: bool = True
    """Of train; the other splits are read in order."""
    num_workers: int = 0
    """Processes that read and encode; they stay for all epochs. The batches are the same with any number
    of them."""
    pin_memory: bool = False
    """Batches in page-locked memory, where there is a GPU."""
    drop_last: bool = False
    """Leave out the last batch of train when it is not full. The other splits keep all rows."""

    def __post_init__(self):
        positive(self, "batch_size")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """Data that are large, and pictures that are asked for again."""

    use_streaming: bool = False
    """Read train nearly in its order: for files that are larger than memory. Nothing looks at all rows
    first."""
    shuffle_buffer: int = 1024
    """How far a streamed row may move from its place, in rows."""
    cache_images: bool = False
    """Keep processed pictures in the memory of each worker."""
    cache_mb: int = 512
    """At most so much of it; further pictures are not kept."""

    def __post_init__(self):
        positive(self, "shuffle_buffer", "cache_mb")


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """Names of steps in transforms.py, applied in their order."""

    text: tuple[str, ...] = ("strip",)
    """Of every text, before its tokens."""
    image: tuple[str, ...] = ()
    """Of every picture, before its processor."""

    def __post_init__(self):
        for name in self.text:
            lookup(TEXT_STEPS, name, "step for texts")
        for name in self.image:
            lookup(IMAGE_STEPS, name, "step for pictures")


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """The same number of train rows for every value of a field."""

    enabled: bool = False
    """Whether train is balanced."""
    label_field: str | None = None
    """The field whose values become equally frequent."""
    strategy: Literal["oversample", "undersample"] = "oversample"
    """Rows of rare values several times, or only as many rows of each value as the rarest has."""

    def __post_init__(self):
        if self.enabled and not self.label_field:
            raise ValueError("balance needs a label_field")


@dataclass(frozen=True, kw_only=True)
class BadRowsConfig:
    """What happens to a row of train that cannot be used. In the other splits it is always an error: a
    figure over other rows than those asked for would be wrong."""

    policy: Literal["error", "quarantine"] = "error"
    """error: the row ends the run. quarantine: write it to `file`, and take another row in its place."""
    file: str | None = None
    """The ledger (JSONL) of bad rows: a line each, whichever workers, epochs and runs find them."""
    max_share: float = 0.2
    """More bad rows than this share of those that a worker has drawn (after its first 50) end the run."""

    def __post_init__(self):
        if (self.policy == "quarantine") != (self.file is not None):
            raise ValueError("policy quarantine and a file for it go together")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share must be in 0..1, got {self.max_share}")


@dataclass(frozen=True, kw_only=True)
class SpecialConfig:
    """What else a batch holds."""

    return_raw_image: bool = False
    """Batches have `raw_image`, a list of the pictures as PIL shows them, too."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is said on the way."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Of the pipeline's messages."""
    log_statistics: bool = True
    """Say after setup how many rows each split has and how its answers are spread."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A pipeline's YAML file."""

    task_type: Literal["vqa", "image_captioning", "image_text_retrieval"]
    """What a row is; the section of this name says where its parts stand."""
    data_paths: DataPaths
    data_split: DataSplit = field(default_factory=DataSplit)
    vqa: VqaConfig = field(default_factory=VqaConfig)
    image_captioning: CaptionConfig = field(default_factory=CaptionConfig)
    image_text_retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    image_processor: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    dataloader: DataloaderConfig = field(default_factory=DataloaderConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    bad_rows: BadRowsConfig = field(default_factory=BadRowsConfig)
    special: SpecialConfig = field(default_factory=SpecialConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self):
        if self.data_split.auto_split and not self.data_paths.of("train"):
            raise ValueError("auto_split cuts splits from the rows of data_paths > train, which is not given")
        streamed = self.optimization.use_streaming
        if streamed and (self.data_split.auto_split or self.balance.enabled):
            raise ValueError("auto_split and balance look at all rows first: use_streaming must be off")
        if streamed and self.image_captioning.multiple_captions:
            raise ValueError("multiple_captions counts all captions first: use_streaming must be off")

    @property
    def seed(self) -> int:
        return self.data_split.random_seed

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PipelineConfig":
        """From a YAML or JSON file. ValueError for what it may not say."""
        return build(cls, load_mapping(path), os.fspath(path))
