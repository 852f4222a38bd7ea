"""The video model as a row of SYSTEMS: its checks, and its trainer from a run's settings."""

from dataclasses import replace

from quicksviewer.data.preprocess import SampleError
from quicksviewer.model.documents import attend_by_document
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.args import Run, resolved
from quicksviewer.train.callbacks import CheckGradients
from quicksviewer.train.features import FeatureCache, check_features, check_no_team, open_store
from quicksviewer.train.lora import add_lora, check_lora, lora_targets, names_of
from quicksviewer.train.recompute import check_recompute, recompute_parts, recomputed_layers
from quicksviewer.train.stages import STAGES, build_data, build_model, check_paths, trainable_prefixes
from quicksviewer.train.systems import System
from quicksviewer.utils.modules import train_only


def check_run(run: Run) -> None:
    """ValueError for settings that contradict each other."""
    check_lora(run.model)
    check_features(run)
    check_recompute(run.training)
    mini_task(run)


def mini_task(run: Run):
    """What the run asks on the way, or None. ValueError where that cannot be."""
    from quicksviewer.train.mini_eval import read_mini_task

    try:
        return read_mini_task(run.training)
    except SampleError as error:
        raise ValueError(f"--eval_task {run.training.eval_task}: {error}") from error


def check_model(run: Run, model) -> None:
    """ValueError for settings that ask of the model what it does not have."""
    if run.model.lora_enable:
        lora_targets(model, names_of(run.model.lora_parts), names_of(run.model.lora_targets))
    check_no_team(run, model.team.size)
    if run.training.eval_task and model.team.size > 1:
        raise ValueError("--eval_task and sequence parallelism do not go together: leave one of them out")
    for part in names_of(run.training.checkpoint_parts):
        recomputed_layers(model, part)


def build_trainer(run: Run, loaded):
    """The trainer of a run, with the parts of its stage trainable and all others frozen."""
    from quicksviewer.train.llava_trainer import LLaVATrainer

    model = loaded.model
    cubing = replace(model.mm_config.cubing, **run.training.cubing())
    model.config.use_cache = False
    model.linear_loss = run.training.linear_loss
    if run.training.pack:
        attend_by_document(model.config)
    if run.model.lora_enable:
        model = add_lora(model, run.model, run.stage, one_dtype=bool(run.training.deepspeed))
    else:
        train_only(model, trainable_prefixes(model, run.stage))
    data = build_data(run, loaded.processor)
    recompute_parts(loaded.model, names_of(run.training.checkpoint_parts))
    store = open_store(run, loaded.model.vision_tower, loaded.processor)
    data["train_dataset"].features = store
    trainer = LLaVATrainer(
        model=model,
        args=run.training,
        processing_class=loaded.processor,
        callbacks=[CheckGradients()],
        cubing=cubing,
        rates=run.training.part_rates(),
        resolved=resolved(run),
        fingerprint=data["train_dataset"].fingerprint,
        features=None if store is None else FeatureCache(loaded.model.vision_tower, store),
        **data,
    )
    if (mini := mini_task(run)) is not None:
        from quicksviewer.train.mini_eval import MiniEvaluation

        trainer.add_callback(MiniEvaluation(trainer, loaded, mini))
    return trainer


VIDEO = System(
    parts=PARTS,
    stages=STAGES,
    check_paths=check_paths,
    check_run=check_run,
    build_model=build_model,
    check_model=check_model,
    build_trainer=build_trainer,
    forms_teams=True,
)
