"""What each stage of the video model trains, as data, and how the model and the data of a run are built."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from quicksviewer.data.dataset import BadSamplePolicy, make_supervised_data_module
from quicksviewer.data.lengths import size_table
from quicksviewer.data.manifest import Manifest
from quicksviewer.data.manifest_media import ManifestMedia
from quicksviewer.data.mixture import parse_mixture
from quicksviewer.data.sources import sniff
from quicksviewer.model.builder import (
    ADAPTER_FILE,
    is_ours,
    load_pretrained_model,
    new_model,
    quantization,
)
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.systems import learning_prefixes
from quicksviewer.utils.dist import barrier
from quicksviewer.utils.stores import is_remote

STAGES = {
    "stage1": ("special_tokens", "projector", "resampler", "cubing"),
    "stage2": ("special_tokens", "projector", "resampler", "cubing", "vision_tower"),
    "stage3": ("special_tokens", "projector", "resampler", "cubing", "vision_tower", "llm"),
}
"""Stage -> parts of the model (see PARTS in model/llava_arch.py) that learn in it."""


def trainable_prefixes(model, stage: str) -> tuple[str, ...]:
    """Dotted prefixes of the parameters that a stage trains in this model. Parts without parameters have
    none."""
    return learning_prefixes(model, PARTS, STAGES[stage])


def check_paths(recipe: str, stage: str, model, data, output_dir: str | None, is_fresh=None) -> None:
    """Every file a run needs is there, or one error names all that are missing and how to supply them.

    `is_fresh`: of the model's path and the stage, whether the run needs a vision tower.
    """
    needs = [
        ("--model_name_or_path", model.model_name_or_path, "a language model, or the stage before", _is_model)
    ]
    if (is_fresh or _is_fresh)(model.model_name_or_path, stage):
        needs.append(("--vision_tower", model.vision_tower, "a SigLIP or CLIP checkpoint", _is_model))
    needs.append(
        ("--data_path", data.data_path, "a mixture: a YAML file, or paths of JSONL files", _is_mixture)
    )
    needs.append(("--output_dir", output_dir, "where the run writes", bool))
    missing = [(flag, path, what) for flag, path, what, is_there in needs if not (path and is_there(path))]
    if not any(flag == "--data_path" for flag, _, _ in missing):
        specs = parse_mixture(data.data_path, data.data_registry)
        paths = sorted({spec.path for spec in specs if not _is_data_set(spec.path)})
        missing += [("--data_path", path, "rows of a data set that the mixture names") for path in paths]
    if missing:
        lines = [f"  {flag:21} {path or '(not given)'}  -- {what}" for flag, path, what in missing]
        raise ValueError(
            f"recipe {recipe!r}, {stage}: {len(missing)} things that it needs are missing:\n"
            + "\n".join(lines)
            + "\nPut them there, or name other places with the flags on the left (data: --data_registry, "
            + f"now {data.data_registry}).\nNothing is downloaded. Without any files: "
            + "RECIPE=tiny, after python -m quicksviewer data make --recipe tiny"
        )


def _is_fresh(path: str | None, stage: str) -> bool:
    """Whether a run starts from a plain language model and so needs a tower. If it is missing, the stage
    tells."""
    if path and _is_model(path):
        return not is_ours(path)
    return stage == "stage1"


def _is_model(path: str) -> bool:
    return (Path(path) / "config.json").is_file()


def _is_mixture(path: str) -> bool:
    return not path.endswith((".yaml", ".yml")) or Path(path).is_file()


def _is_data_set(path: str) -> bool:
    """A file of rows, or a folder that holds a store or archives; what is elsewhere is not looked at."""
    return is_remote(path) or Path(path).is_file() or (Path(path).is_dir() and sniff(path) != "jsonl")


def build_model(run):
    """The model of a run with its processor: fresh from a language model and a tower, or an earlier stage's.

    Settings that belong to the structure are refused for a model that has its structure already.
    """
    load = dict(dtype=_dtype(run.training), attn_implementation=run.model.attn_implementation)
    bits = run.model.bits
    if is_ours(run.model.model_name_or_path):
        if given := run.model.structure():
            names = ", ".join(".".join(at) for at in given)
            raise ValueError(
                f"{run.model.model_name_or_path} has its structure already; it cannot change {names}"
            )
        _refuse_adapter(run.model.model_name_or_path, bits)
        load |= dict(load_4bit=bits == 4, load_8bit=bits == 8)
        loaded = load_pretrained_model(run.model.model_name_or_path, **load)
    else:
        load |= dict(quantization=quantization(bits, load["dtype"]))
        overrides = _merge(run.mm, run.model.structure())
        media = run.data.media()
        loaded = new_model(
            run.model.model_name_or_path, run.model.vision_tower, overrides, run.model.version, media, **load
        )
    return replace(loaded, processor=loaded.processor.with_media(**run.data.media()))


def _refuse_adapter(folder: str, bits: int) -> None:
    """ValueError where weights would have to be merged and quantised: rounding comes before the merge."""
    if bits < 16 and (Path(folder) / ADAPTER_FILE).is_file():
        raise ValueError(
            f"{folder} is a LoRA checkpoint, whose adapter cannot be merged into --bits {bits}; "
            "continue with --bits 16, or load it, save the merged model, and start from that"
        )


def _dtype(training):
    """Weights are float32 where an optimizer without master weights updates them; DeepSpeed's bf16 keeps its
    own."""
    return torch.bfloat16 if training.bf16 and training.deepspeed else torch.float32


def _merge(mm: dict, structure: dict) -> dict:
    merged = {section: dict(values) for section, values in mm.items()}
    for (section, key), value in structure.items():
        merged.setdefault(section, {})[key] = value
    return merged


def build_data(run, processor) -> dict:
    """train_dataset and data_collator of a run."""
    module = make_supervised_data_module(
        processor,
        run.data.data_path,
        run.training.model_max_length,
        run.data.data_registry,
        BadSamplePolicy(replace=not run.data.stop_at_bad_sample, max_share=run.data.max_bad_share),
        run.data.quarantine or Path(run.training.output_dir) / "quarantine.jsonl",
        run.training.loss_weighting,
        run.training.pack_caps(),
        measure_once(run, processor) if run.training.needs_sizes else None,
    )
    if run.training.manifest:
        data = module["train_dataset"]
        data.heed(ManifestMedia(Manifest(run.training.manifest), data.mixture))
    return module


def measure_once(run, processor):
    """How the rows of a run are measured: on the first process of a node, for all of them; or read from a
    manifest, by each."""
    if run.training.manifest:
        return lambda mixture, caps: size_table(mixture, processor, caps, manifest=run.training.manifest)
    folder = run.training.lengths_cache or Path(run.training.output_dir) / "lengths"

    def measure(mixture, caps):
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            size_table(mixture, processor, caps, folder)
        barrier()
        return size_table(mixture, processor, caps, folder)

    return measure
