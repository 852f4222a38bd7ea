"""A step gives the same loss and gradient however its samples are split: over ranks, micro-batches, packs."""

import json

import pytest
from tiny_runs import ROOT, run, text_rows, video_rows, write_recipe

STEPS = 2


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Two steps over eight samples in their order: videos and texts with answers of very different length."""
    pairs = zip(video_rows(tiny, 4), text_rows(tiny, 4), strict=True)
    rows = [row for pair in pairs for row in pair]
    steps = dict(max_steps=STEPS, train_sampling_strategy="sequential", learning_rate=1e-3, max_grad_norm=0.1)
    noise = dict(noise_start=0.0, noise_end=0.0)
    return write_recipe(tiny, tmp_path_factory.mktemp("batches"), rows, **steps, **noise)


def split(ranks: int, rows: int, accumulation: int, *more: str) -> tuple[int, list[str]]:
    flags = ["--per_device_train_batch_size", str(rows), "--gradient_accumulation_steps", str(accumulation)]
    return ranks, [*flags, *more]


PACK = ("--pack", "True", "--pack_max_tokens")
SPLITS = {
    "8 micro-batches": split(1, 1, 8),
    "2 ranks": split(2, 2, 2),
    "4 ranks": split(4, 1, 2),
    "one pack": split(1, 1, 1, *PACK, "2000"),
    "ZeRO-2": split(2, 1, 4, "--deepspeed", str(ROOT / "zero2.json")),
    "ZeRO-3": split(2, 4, 1, "--deepspeed", str(ROOT / "zero3.json")),
    "logits": split(1, 8, 1, "--linear_loss", "False"),
}
CASES = [("token", "one pack"), ("token", "logits"), ("square_root", "2 ranks")]
CASES += [("sample", name) for name in SPLITS if name not in ("logits", "2 ranks")]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """One process, one micro-batch of eight rows; by weighting."""
    folder, flags = tmp_path_factory.mktemp("whole"), split(1, 8, 1)[1]
    return {
        name: run(recipe, folder / name, 1, *flags, "--loss_weighting", name)
        for name in ("token", "sample", "square_root")
    }


@pytest.mark.parametrize(("weighting", "name"), CASES)
def test_a_step_is_the_same_however_it_is_split(recipe, whole, tmp_path, weighting, name):
    ranks, flags = SPLITS[name]
    logs = run(recipe, tmp_path / "out", ranks, *flags, "--loss_weighting", weighting)
    assert len(logs) == STEPS
    for ours, reference in zip(logs, whole[weighting], strict=True):
        assert ours["loss_tokens"] == pytest.approx(reference["loss_tokens"], rel=2e-6)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
        for key in (key for key in reference if key.startswith("loss/") and name != "logits"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-5), key


def test_weightings_differ_and_groups_add_up(whole):
    losses = [logs[0]["loss_tokens"] for logs in whole.values()]
    assert len({round(loss, 4) for loss in losses}) == 3
    first = whole["token"][0]
    names = {key for key in first if key.startswith("loss/")}
    assert names == {"loss/modality/text", "loss/modality/video", "loss/source/text", "loss/source/world"}
    low, high = sorted([first["loss/modality/text"], first["loss/modality/video"]])
    assert low < first["loss_tokens"] < high


def test_repacked_training_runs_on_two_ranks(recipe, tmp_path):
    import subprocess
    import sys

    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["-m", "quicksviewer.train.train_repack", "--recipe", str(recipe), "--stage", "stage2"]
    words += ["--output_dir", str(tmp_path / "out"), "--pack_max_tokens", "200", "--pack_max_frames", "16"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["training"]["pack"] and told["training"]["per_device_train_batch_size"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pack_max_frames", "8"], "pack_max_frames need"),
        (["--pack", "True", "--group_by_modality_length", "True"], "not both"),
        (["--pack", "True", "--pack_max_tokens", "-3"], "at least 1"),
        (["--loss_weighting", "tokens"], "weighting of the loss"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(recipe, tmp_path, flags, message):
    with pytest.raises(AssertionError, match=message):
        run(recipe, tmp_path / "out", 1, *flags)
