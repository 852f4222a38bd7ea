"""What is looked at: the rows that a run would read, and the processor that would read them, without its
weights.

Either a recipe and a stage, with any flag of training, or a mixture and the folder of a model.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.model.builder import is_ours, new_mm_config, read_tower
from quicksviewer.model.processor import QuicksviewerProcessor
from quicksviewer.train.args import Settings, read_settings
from quicksviewer.train.systems import DEFAULT

LEDGER = "quarantine.jsonl"


@dataclass(frozen=True)
class Subject:
    """`ledger`: where its bad rows are written down, unless the caller says otherwise."""

    name: str
    mixture: Mixture
    processor: QuicksviewerProcessor
    max_length: int
    ledger: Path

    def dataset(self, ledger: str | Path | None = None) -> LazySupervisedDataset:
        """The rows as training loads them."""
        return LazySupervisedDataset(self.mixture, self.processor, self.max_length, quarantine=ledger)


def add_arguments(parser: ArgumentParser) -> None:
    """The part of a command line that names a subject."""
    parser.add_argument("--data", help="a mixture (YAML file, or paths); without it, that of the recipe")
    parser.add_argument("--model", help="folder of a model of this project, to read --data as it does")
    parser.add_argument("--registry", help="YAML file that gives names of the mixture a path (with --data)")
    parser.add_argument("--max_length", type=int, default=16384, help="longest row in tokens (with --data)")
    parser.add_argument("--out", default="output/survey", help="folder for what is written")
    parser.add_argument("--workers", type=int, default=2, help="processes that look at rows; 0: this one")
    parser.epilog = (
        "Without --data: --recipe NAME --stage STAGE and any flag of `quicksviewer train`; rows, processor "
        "and limits are then those of that run."
    )


def read_subject(args: Namespace, rest: list[str]) -> Subject:
    """The subject that a command line names. ValueError where it cannot be read."""
    if args.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {args.workers}")
    if args.data is None:
        if args.model or args.registry:
            raise ValueError("--model and --registry go with --data; a recipe names its own")
        if not rest:
            raise ValueError("give --data and --model, or --recipe and --stage")
        return of_settings(read_settings(rest))
    if rest:
        raise ValueError(f"{' '.join(rest)}: flags of training go with --recipe, not with --data")
    if not args.model:
        raise ValueError("--data needs --model: the processor that turns rows into tokens")
    if not is_ours(args.model):
        raise ValueError(f"{args.model} is no model of this project; give a recipe for a fresh one")
    return Subject(
        name=f"{args.data} as {args.model} reads it",
        mixture=once_each(args.data, args.registry),
        processor=QuicksviewerProcessor.from_pretrained(args.model, local_files_only=True),
        max_length=args.max_length,
        ledger=Path(args.out) / LEDGER,
    )


def of_settings(settings: Settings) -> Subject:
    """The subject of a run. ValueError for a kind of model whose rows are not those of this project."""
    if settings.system != DEFAULT:
        raise ValueError(f"recipe {settings.recipe} trains {settings.system}, whose rows are of another kind")
    values = settings.values
    return Subject(
        name=f"{settings.stage} of recipe {settings.recipe}",
        mixture=once_each(settings.data.data_path, settings.data.data_registry),
        processor=processor_of(settings),
        max_length=values.model_max_length,
        ledger=Path(settings.data.quarantine or Path(values.output_dir) / LEDGER),
    )


def processor_of(settings: Settings) -> QuicksviewerProcessor:
    """The processor that a run starts with: its checkpoint's, or that of a fresh model."""
    model, media = settings.model, settings.data.media()
    if is_ours(model.model_name_or_path):
        saved = QuicksviewerProcessor.from_pretrained(model.model_name_or_path, local_files_only=True)
        return saved.with_media(**media)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, local_files_only=True)
    mm = new_mm_config(tokenizer, read_tower(model.vision_tower), structure_of(settings))
    return QuicksviewerProcessor(tokenizer, mm.to_dict(), model.version, media)


def structure_of(settings: Settings) -> dict:
    """The sections of the vision side of a fresh model: the recipe's `mm`, then flags."""
    sections = {section: dict(values) for section, values in settings.mm.items()}
    for (section, key), value in settings.model.structure().items():
        sections.setdefault(section, {})[key] = value
    return sections


def once_each(data: str, registry: str | None) -> Mixture:
    """The rows of a mixture, those that it repeats only once."""
    specs = parse_mixture(data, registry)
    return Mixture(replace(spec, repeat=min(spec.repeat, 1.0)) for spec in specs)
