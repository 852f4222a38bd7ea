"""What a run says about itself is what its recipe said."""

import json
import math

import pytest
from tiny_world import fresh, text_row, videos

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.llava_trainer import count_gates
from quicksviewer.train.noise import noise_seed
from quicksviewer.train.optim import param_groups, part_of
from quicksviewer.train.stages import STAGES, trainable_prefixes
from quicksviewer.utils.modules import train_only


def test_noise_falls_along_a_cosine_and_then_stays():
    cubing = CubingConfig(noise_start=1.0, noise_end=0.01, noise_share=0.6)
    assert cubing.noise_weight(0) == 1.0 and cubing.noise_weight(0.3) == pytest.approx(0.505)
    assert cubing.noise_weight(0.6) == cubing.noise_weight(1.0) == pytest.approx(0.01)
    assert cubing.noise_weight(0.15) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)


def test_noise_differs_between_ranks_and_steps_and_is_the_same_again():
    seeds = {noise_seed(0, step, micro, rank) for step in range(5) for micro in range(2) for rank in range(3)}
    assert len(seeds) == 30 and noise_seed(0, 1, 1, 1) == noise_seed(0, 1, 1, 1)


@pytest.mark.parametrize("stage", STAGES)
def test_every_trained_parameter_is_in_one_group_with_its_parts_rate(tiny, stage):
    model = fresh(tiny).model
    train_only(model, trainable_prefixes(model, stage))
    groups = param_groups(model, 1e-3, 0.1, {"cubing": 5e-4}, PARTS)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(rate) == len(trained) == sum(len(g["params"]) for g in groups)
    for name, p in trained.items():
        expected = 5e-4 if part_of(name, PARTS) == "cubing" else 1e-3
        assert rate[id(p)] == (expected, 0.1 if p.ndim > 1 else 0.0)


def test_gate_frames_are_all_but_the_first_of_every_video():
    assert count_gates({"medium_frames": [5, 1, 3, 1], "medium_is_video": [True, False, True, True]}) == 6
    assert count_gates({}) == 0


def test_logs_name_rates_noise_and_cubes(tiny, tmp_path):
    from quicksviewer.train.args import TrainingArguments
    from quicksviewer.train.llava_trainer import LLaVATrainer

    loaded = fresh(tiny)
    train_only(loaded.model, trainable_prefixes(loaded.model, "stage1"))
    video = loaded.processor.load_video(videos(tiny)[0])
    from quicksviewer.conversation import Turn
    from quicksviewer.data.collator import DataCollatorForSupervisedDataset

    turns = [Turn("user", "<video>\nWhat?"), Turn("assistant", "red")]
    rows = [loaded.processor.encode_turns(turns, [video]), text_row(loaded)]
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=4,
        logging_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = LLaVATrainer(
        model=loaded.model,
        args=args,
        train_dataset=rows * 4,
        cubing=CubingConfig(noise_share=0.5, aux_weight=0.1),
        data_collator=DataCollatorForSupervisedDataset(loaded.processor.pad_id),
        rates={"cubing": 1e-4},
        resolved={"stage": "stage1"},
        processing_class=loaded.processor,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["lr/cubing"] for entry in logs] == [1e-4] * 4
    assert {entry["lr/resampler"] for entry in logs} == {1e-3}
    assert logs[-1]["noise_weight"] == pytest.approx(0.01)
    for entry in logs:
        assert entry["loss"] == pytest.approx(
            entry["loss_tokens"] + 0.1 * entry.get("loss_gate", 0), rel=1e-3
        )
    frames = len(video.pixels)
    cubes = loaded.processor.layout.num_cubes(frames)
    seen = [entry["frames_per_cube"] for entry in logs if "frames_per_cube" in entry]
    assert seen and all(value <= frames / cubes + 1e-6 for value in seen)
    trainer.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved/run.json").read_text()) == {"stage": "stage1"}
