"""BLIP that answers questions, as a row of SYSTEMS: its data come from a pipeline's YAML file.

    python -m quicksviewer train --recipe blip_vqa

`--data_path` is that file. `--model_name_or_path` is a BLIP checkpoint; without one a model of the recipe's
shape (`mm`) starts from random weights, with the tokenizer and image processor that the YAML names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.data.pipeline.config import PipelineConfig
from quicksviewer.data.pipeline.pipeline import DataPipeline
from quicksviewer.data.pipeline.processors import load_image_processor, load_tokenizer
from quicksviewer.train.args import DataArguments, ModelArguments, Run, resolved
from quicksviewer.train.callbacks import CheckGradients
from quicksviewer.train.systems import System, learning_prefixes
from quicksviewer.train.trainer import StageTrainer
from quicksviewer.utils.config import build
from quicksviewer.utils.modules import train_only

PARTS = {
    "vision_tower": ("vision_model",),
    "text_encoder": ("text_encoder",),
    "text_decoder": ("text_decoder",),
}
STAGES = {"full": tuple(PARTS), "text": ("text_encoder", "text_decoder")}
FOLLOWS = frozenset({"model_name_or_path", "data_path", "mm_vision_tower_lr"})


@dataclass(frozen=True, kw_only=True)
class BlipShape:
    """The section `mm` of a recipe: the structure of a fresh BLIP. Tower and text models have one width."""

    width: int = 96
    heads: int = 4
    vision_layers: int = 2
    text_layers: int = 2
    feed_forward: int = 3
    """Times the width."""
    patch_size: int = 8
    max_text: int = 64
    """Most tokens of a text."""

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")


@dataclass(frozen=True)
class Loaded:
    """A model with its processor."""

    model: Any
    processor: Any


def check_paths(
    recipe: str, stage: str, model: ModelArguments, data: DataArguments, output_dir: str | None
) -> None:
    """ValueError for files of a run that are not there, with how to supply them."""
    if not output_dir:
        raise ValueError(f"recipe {recipe!r}, {stage}: --output_dir is not given: where the run writes")
    if not (data.data_path and Path(data.data_path).is_file()):
        raise ValueError(f"recipe {recipe!r}: --data_path {data.data_path} is no YAML file of a pipeline")
    config = PipelineConfig.load(data.data_path)
    if config.task_type != "vqa":
        raise ValueError(f"{data.data_path}: task_type must be vqa here, got {config.task_type}")
    if config.special.return_raw_image or config.optimization.use_streaming:
        raise ValueError(
            f"{data.data_path}: the trainer has an order of its own and passes on tensors only: "
            "use_streaming and return_raw_image must be off"
        )
    if missing := [path for path in config.data_paths.of("train") if not Path(path).exists()]:
        raise ValueError(
            f"{data.data_path}: no data at {', '.join(missing)}. Those of the shipped file are made by "
            "python -m quicksviewer.data.easy_vqa"
        )
    if model.model_name_or_path:
        _check_checkpoint(model.model_name_or_path)


def _check_checkpoint(folder: str) -> None:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"--model_name_or_path {folder} is no checkpoint folder: it has no config.json")
    if (found := json.loads(path.read_text()).get("model_type")) != "blip":
        raise ValueError(f"--model_name_or_path {folder} holds a {found}, expected a blip")


def check_run(run: Run) -> None:
    """ValueError for a structure that is given beside a checkpoint, which has its own."""
    if run.model.model_name_or_path and run.mm:
        raise ValueError(
            f"{run.model.model_name_or_path} has its structure already; the recipe's section mm is for a "
            "fresh model: leave one of them out"
        )


def build_model(run: Run) -> Loaded:
    """A fresh BLIP of the recipe's shape, or that of a checkpoint, in float32, with its processor."""
    if folder := run.model.model_name_or_path:
        return load_blip(folder)
    from transformers import BlipProcessor

    from quicksviewer.zoo.blip_writing import BlipForQuestionAnswering

    config = PipelineConfig.load(run.data.data_path)
    tokenizer = load_tokenizer(config.tokenizer)
    pictures = load_image_processor(config.image_processor, config.tokenizer.name)
    shape = build(BlipShape, run.mm, f"recipe {run.recipe} > mm")
    model = BlipForQuestionAnswering(blip_config(shape, tokenizer, pictures))
    return Loaded(model, BlipProcessor(pictures, tokenizer))


def load_blip(folder: str) -> Loaded:
    """ValueError where the folder does not hold every weight of a BLIP that answers questions."""
    from transformers import BlipProcessor

    from quicksviewer.zoo.blip_writing import BlipForQuestionAnswering

    model, report = BlipForQuestionAnswering.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(set(report["missing_keys"]) - set(model.all_tied_weights_keys)):
        raise ValueError(f"{folder} lacks {len(missing)} weights of the model, such as {missing[:3]}")
    return Loaded(model, BlipProcessor.from_pretrained(folder, local_files_only=True))


def blip_config(shape: BlipShape, tokenizer, image_processor):
    """The transformers config of a fresh model. ValueError where the tokenizer does not say how the decoder
    begins."""
    from transformers import BlipConfig

    if tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no bos_token, with which a fresh BLIP's decoder would begin")
    size = image_processor.to_dict()["size"]
    if size.get("height") != size.get("width") or size["height"] % shape.patch_size:
        raise ValueError(f"pictures must be squares of a multiple of {shape.patch_size} pixels, got {size}")
    layer = dict(
        hidden_size=shape.width,
        intermediate_size=shape.width * shape.feed_forward,
        num_attention_heads=shape.heads,
        projection_dim=shape.width,
        initializer_range=0.02,  # of the tower transformers' default is 1e-10, which makes all pictures alike
    )
    text = dict(
        vocab_size=len(tokenizer),
        num_hidden_layers=shape.text_layers,
        max_position_embeddings=shape.max_text,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        num_hidden_layers=shape.vision_layers, image_size=size["height"], patch_size=shape.patch_size
    )
    return BlipConfig(text_config=layer | text, vision_config=layer | vision)


class BlipTrainer(StageTrainer):
    """The loss of a step is the mean over its target tokens, whatever its micro-batches and processes are."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # what `compute_loss` gives is divided already

    def _get_num_items_in_batch(self, batch_samples, device):
        """Target tokens of the whole step, over all processes."""
        if not batch_samples:
            return None
        return self.accelerator.gather(sum(map(count_targets, batch_samples)).to(device)).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """BLIP gives the mean of its micro-batch; here it weighs by its targets. Gradients are averaged over
        processes, hence their number."""
        outputs = model(**inputs)
        loss = outputs.loss
        if num_items_in_batch is not None:
            loss = loss * count_targets(inputs) / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def count_targets(batch: dict) -> torch.Tensor:
    """Tokens that the decoder has to write: the first label of a row is its start."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()


def build_trainer(run: Run, loaded: Loaded) -> BlipTrainer:
    """The trainer of a run, with the parts of its stage trainable and all others frozen."""
    model = train_only(loaded.model, learning_prefixes(loaded.model, PARTS, STAGES[run.stage]))
    start = model.config.text_config.bos_token_id
    pipeline = DataPipeline(run.data.data_path, processor=loaded.processor, decoder_start=start)
    pipeline.setup()
    data = pipeline.get_dataset("train")
    return BlipTrainer(
        model=model,
        args=run.training,
        processing_class=loaded.processor,
        callbacks=[CheckGradients()],
        parts=PARTS,
        rates=run.training.part_rates(),
        resolved=resolved(run),
        fingerprint=data.fingerprint,
        train_dataset=data,
        data_collator=pipeline.collator,
    )


BLIP_VQA = System(
    parts=PARTS,
    stages=STAGES,
    follows=FOLLOWS,
    check_paths=check_paths,
    check_run=check_run,
    build_model=build_model,
    check_model=lambda run, model: None,  # nothing that a flag could ask of it is missing
    build_trainer=build_trainer,
)
