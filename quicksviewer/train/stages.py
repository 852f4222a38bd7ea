"""What each stage trains, as data, and how the model and the data of a run are built."""

from dataclasses import replace
from pathlib import Path

from quicksviewer.utils.registry import load_target

STAGES = {
    "stage1": ("special_tokens", "projector", "resampler", "cubing"),
    "stage2": ("special_tokens", "projector", "resampler", "cubing", "vision_tower"),
    "stage3": ("special_tokens", "projector", "resampler", "cubing", "vision_tower", "llm"),
}
"""Stage -> parts of the model (see PARTS in model/llava_arch.py) that learn in it."""


def trainable_prefixes(model, stage: str) -> tuple[str, ...]:
    """Dotted prefixes of the parameters that a stage trains in this model. Parts without parameters have none."""
    parts = load_target("quicksviewer.model.llava_arch:PARTS")
    names = [name for name, _ in model.named_parameters()]
    prefixes = [prefix for part in STAGES[stage] for prefix in parts[part]]
    return tuple(p for p in prefixes if any(name.startswith(p + ".") for name in names))


def check_paths(run) -> None:
    """Every file a run needs is there, or one error names all that are missing and how to supply them."""
    needs = [("--model_name_or_path", run.model.model_name_or_path, "the language model, or the stage before")]
    model = run.model.model_name_or_path
    if model and (Path(model) / "config.json").is_file() and _is_ours(model):
        pass
    else:
        needs.append(("--vision_tower", run.model.vision_tower, "a SigLIP or CLIP checkpoint"))
    needs.append(("--data_path", run.data.data_path, "a mixture file, or paths of JSONL files"))
    if run.training.output_dir is None:
        needs.append(("--output_dir", None, "where the run writes"))
    missing = [need for need in needs if not _is_there(*need[:2])]
    missing += [("--data_path", path, "named by the mixture") for path in _missing_data(run)]
    if missing:
        lines = [f"  {flag:22} {path or '(not given)'}  -- {what}" for flag, path, what in missing]
        raise ValueError(
            f"recipe {run.recipe!r}, {run.stage}: {len(missing)} needed things are missing:\n"
            + "\n".join(lines)
            + "\nPut them there, or give other places with the flags on the left. Nothing is downloaded."
        )


def _is_ours(folder: str) -> bool:
    return load_target("quicksviewer.model.builder:is_ours")(folder)


def _is_there(flag: str, path: str | None) -> bool:
    if path is None:
        return False
    if flag in ("--model_name_or_path", "--vision_tower"):
        return (Path(path) / "config.json").is_file()
    return flag == "--output_dir" or not path.endswith((".yaml", ".yml")) or Path(path).is_file()


def _missing_data(run) -> list[str]:
    data = run.data.data_path
    if data is None or (data.endswith((".yaml", ".yml")) and not Path(data).is_file()):
        return []
    specs = load_target("quicksviewer.data.mixture:parse_mixture")(data, run.data.data_registry)
    return sorted({spec.path for spec in specs if not Path(spec.path).is_file()})


def build_model(run):
    """The model of a run with its processor: fresh from a language model and a tower, or an earlier stage's.

    Settings that belong to the structure are refused for a model that has its structure already.
    """
    builder = load_target("quicksviewer.model.builder:load_pretrained_model")
    load = dict(dtype=_dtype(run.training), attn_implementation=run.model.attn_implementation)
    if _is_ours(run.model.model_name_or_path):
        if given := run.model.structure():
            names = ", ".join(".".join(at) for at in given)
            raise ValueError(f"{run.model.model_name_or_path} has its structure already; it cannot change {names}")
        loaded = builder(run.model.model_name_or_path, **load)
    else:
        new_model = load_target("quicksviewer.model.builder:new_model")
        overrides = _merge(run.mm, run.model.structure())
        media = run.data.media()
        loaded = new_model(
            run.model.model_name_or_path, run.model.vision_tower, overrides, run.model.version, media, **load
        )
    return replace(loaded, processor=loaded.processor.with_media(**run.data.media()))


def _dtype(training):
    """Weights are float32 where an optimizer without master weights updates them; DeepSpeed's bf16 keeps its own."""
    import torch

    return torch.bfloat16 if training.bf16 and training.deepspeed else torch.float32


def _merge(mm: dict, structure: dict) -> dict:
    merged = {section: dict(values) for section, values in mm.items()}
    for (section, key), value in structure.items():
        merged.setdefault(section, {})[key] = value
    return merged


def build_data(run, processor) -> dict:
    """train_dataset and data_collator of a run."""
    make = load_target("quicksviewer.data.dataset:make_supervised_data_module")
    policy = load_target("quicksviewer.data.dataset:BadSamplePolicy")
    return make(
        processor,
        run.data.data_path,
        run.training.model_max_length,
        run.data.data_registry,
        policy(replace=not run.data.stop_at_bad_sample, max_share=run.data.max_bad_share),
        Path(run.training.output_dir) / "quarantine.jsonl",
    )
