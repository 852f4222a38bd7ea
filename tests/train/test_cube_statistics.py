"""What the logs say of cubes, against counting by hand."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import TrainerState

from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing import Cuts, build_cubing
from quicksviewer.model.multimodal_cubing.base import broken_frames, refuse_broken
from quicksviewer.train.args import TrainingArguments
from quicksviewer.train.callbacks import StopOnBrokenFeatures
from quicksviewer.train.cube_statistics import CLASSES, CubeStatistics, check_cubes
from quicksviewer.train.llava_trainer import LLaVATrainer
from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.train.statistics import Statistics
from quicksviewer.utils.colours import colour_changes
from quicksviewer.utils.modules import train_only

FRAMES = [10, 1, 6, 40]
OPENS = [[0, 1, 2], [0], [0, 2, 4], [0, 3, 39]]


def cuts(**rest):
    mask = torch.cat(
        [torch.zeros(n).index_fill(0, torch.tensor(o), 1.0) for n, o in zip(FRAMES, OPENS, strict=True)]
    )
    return Cuts.from_mask(mask, [len(o) for o in OPENS], *rest.values())


def logs(statistics, steps=1):
    return CubeStatistics.logs(statistics.vector().tolist(), 4, steps)


def test_classes_of_lengths():
    assert CLASSES == ["1", "2", "3-4", "5-8", "9-16", "17-32", "over_32"]
    statistics = CubeStatistics("cpu")
    statistics.add(cuts())
    lengths = [1, 1, 8, 1, 2, 2, 2, 3, 36, 1]
    expected = {"1": 4, "2": 3, "3-4": 1, "5-8": 1, "over_32": 1}
    found = logs(statistics)
    assert {name: found[f"cubes/{name}"] * len(lengths) for name in CLASSES} == pytest.approx(
        {name: expected.get(name, 0) for name in CLASSES}
    )


def test_a_video_of_which_one_cube_takes_all_is_collapsed():
    statistics = CubeStatistics("cpu")
    statistics.add(cuts())
    assert logs(statistics)["collapsed_videos"] == pytest.approx(1 / 3)  # the first: 1, 1 and 8 frames


def test_tokens_per_second_of_video():
    statistics = CubeStatistics("cpu")
    times = torch.cat([torch.arange(n) * step for n, step in zip(FRAMES, (1.0, 0.0, 2.0, 0.5), strict=True)])
    statistics.add(cuts(), times)
    assert logs(statistics)["tokens_per_second_of_video"] == pytest.approx(9 * 4 / (10 + 12 + 20))


def test_entropy_and_gradient_of_the_gate():
    cubing = build_cubing(CubingConfig(energy_features=False), 8)
    with torch.no_grad():
        for parameter in cubing.parameters():
            parameter.zero_()
    statistics = CubeStatistics("cpu")
    made = cubing(torch.randn(9, 8), [9], [True])
    statistics.add(made)
    (made.gate_logits[:, 1] * torch.arange(8.0)).sum().backward()
    found = logs(statistics, steps=4)
    assert found["gate_entropy"] == pytest.approx(1.0)
    assert found["gate_grad_norm"] == pytest.approx(math.sqrt(sum(i * i for i in range(8)) / 4))


def test_sums_of_two_ranks_are_those_of_one():
    one, two, both = (CubeStatistics("cpu") for _ in range(3))
    for statistics in (one, two, both, both):
        statistics.add(cuts(), torch.arange(57.0))
    torch.testing.assert_close(one.vector() + two.vector(), both.vector())
    both.clear()
    assert not both.vector().any()


def test_collapse_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        check_cubes({"collapsed_videos": 0.4})
        assert not caplog.records
        check_cubes({"collapsed_videos": 0.75})
    assert "75% of the videos" in caplog.text


def test_shots_are_counted_where_a_cube_opens():
    """Colours change at the frames 2 and 5 of the first video and 30 of the last; its 31st is no cut."""
    pixels = torch.zeros(sum(FRAMES), 3, 8, 8, dtype=torch.uint8)
    pixels[2:5], pixels[10], pixels[17 + 3 :] = 200, 90, 120
    statistics = CubeStatistics("cpu")
    statistics.add(cuts(), None, pixels)  # where a medium begins is no change: its pixels differ, too
    assert logs(statistics)["shots_cut"] == pytest.approx(2 / 3)
    statistics.clear()
    statistics.add(cuts(), None, torch.zeros_like(pixels))
    assert "shots_cut" not in logs(statistics)


def test_changes_of_colour_by_hand():
    pixels = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    pixels[1:, 0, 0] = 255  # half of the pixels move from one bin to another
    assert colour_changes(pixels).tolist() == [0.0, 1.0, 0.0]
    large = pixels.repeat_interleave(64, dim=2).repeat_interleave(64, dim=3)
    assert colour_changes(large).tolist() == [0.0, 1.0, 0.0]


def test_nothing_waits_for_the_device():
    """Fake tensors have no values to wait for."""
    with FakeTensorMode():
        cubing, statistics = build_cubing(CubingConfig(), 8), Statistics("cpu")
        total = sum(FRAMES)
        made = cubing(torch.empty(total, 8), FRAMES, [n > 1 for n in FRAMES])
        made = replace(made, broken=broken_frames(torch.empty(total, 8)))
        statistics.add_cuts(made, torch.empty(total), torch.empty(total, 3, 8, 8, dtype=torch.uint8))
        assert statistics.cubes.broken().shape == (2,)


def broken(frames, gates):
    """Statistics of a step in which so many frames and gates were no numbers."""
    statistics, pooled = CubeStatistics("cpu"), torch.randn(9, 8)
    made = build_cubing(CubingConfig(), 8)(pooled, [9], [True])
    pooled[:frames] = torch.nan
    made.gate_logits.detach()[:gates] = torch.inf
    statistics.add(replace(made, broken=broken_frames(pooled)))
    return statistics


@pytest.mark.parametrize(
    ("frames", "gates", "message"),
    [
        (3, 8, "step 7: the features of 3 frames .part vision_tower"),
        (0, 2, "step 7: .* 2 gates .part cubing"),
    ],
)
def test_a_step_with_broken_numbers_is_named_when_it_ends(frames, gates, message):
    state = TrainerState(global_step=7)
    StopOnBrokenFeatures(broken(0, 0)).on_step_end(None, state, None)
    with pytest.raises(FloatingPointError, match=message):
        StopOnBrokenFeatures(broken(frames, gates)).on_step_end(None, state, None)


def test_the_log_finds_what_another_rank_has_seen():
    check_cubes({})
    totals = broken(3, 0).vector() + broken(0, 0).vector()
    with pytest.raises(FloatingPointError, match="since the last log: the features of 3 frames"):
        check_cubes(CubeStatistics.logs(totals.tolist(), 4, 1))


def test_a_broken_video_is_named():
    pooled = torch.randn(17, 4)
    refuse_broken(pooled, [10, 1, 6], [True, False, True])
    pooled[13, 2] = torch.nan
    pooled[15, 0] = torch.inf
    assert int(broken_frames(pooled)) == 2
    with pytest.raises(ValueError, match="video 3 of 3 in the batch.*frame 3 of 6"):
        refuse_broken(pooled, [10, 1, 6], [True, False, True])


def test_a_run_with_a_broken_tower_ends_with_its_first_step(tiny, tmp_path):
    """Long before a log line; at inference the same tower is refused with the video's name."""
    from tiny_world import fresh, video_row, videos

    loaded = fresh(tiny)
    train_only(loaded.model, trainable_prefixes(loaded.model, "stage1"))
    rows = [video_row(loaded, path) for path in videos(tiny)[:2]]
    next(loaded.model.vision_tower.parameters()).data.view(-1)[0] = torch.nan
    collator = DataCollatorForSupervisedDataset(loaded.processor.pad_id)
    args = dict(max_steps=9, logging_steps=9, per_device_train_batch_size=2, use_cpu=True, report_to="none")
    trainer = LLaVATrainer(
        model=loaded.model,
        args=TrainingArguments(str(tmp_path), **args, save_strategy="no", disable_tqdm=True),
        train_dataset=rows * 9,
        cubing=CubingConfig(),
        data_collator=collator,
        rates={},
        resolved={},
    )
    with pytest.raises(FloatingPointError, match="step 1: the features of .*part vision_tower"):
        trainer.train()
    batch = {key: value for key, value in collator(rows).items() if key != "groups"}
    with pytest.raises(ValueError, match="video 1 of 2 in the batch: the features of its frame 1"):
        loaded.model.eval()(**batch)
