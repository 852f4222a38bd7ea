"""`quicksviewer plan`: what is counted is exact, what is simulated is what a real step takes."""

import json

import pytest
import torch
from tiny_runs import text_rows, video_rows, write_recipe
from tiny_world import fresh, video_row, videos

from quicksviewer.__main__ import main
from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.data.dataset import make_supervised_data_module
from quicksviewer.survey.hardware import CARDS, GIB_OF_GB, hardware
from quicksviewer.survey.memory import Load, Setup, activations, simulated, standing, trained_parts
from quicksviewer.survey.shape import shape_of
from quicksviewer.train.args import read_settings
from quicksviewer.train.recompute import recompute_parts
from quicksviewer.train.stages import STAGES, trainable_prefixes
from quicksviewer.utils.modules import train_only

ROWS = 6, 4


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    rows = video_rows(tiny, ROWS[0]) + text_rows(tiny, ROWS[1])
    return write_recipe(tiny, folder, rows, output_dir=str(folder / "out"), per_device_train_batch_size=2)


def shape(recipe, stage="stage3"):
    return shape_of(read_settings(["--recipe", str(recipe), "--stage", stage], needs_files=False))


# --- counted ---


@pytest.mark.parametrize("stage", STAGES)
def test_weights_gradients_and_states_are_those_of_a_real_step(tiny, recipe, stage):
    loaded = fresh(tiny)
    model = train_only(loaded.model.train(), trainable_prefixes(loaded.model, stage))
    collate = DataCollatorForSupervisedDataset(loaded.processor.pad_id)
    batch = collate([video_row(loaded, videos(tiny)[0]) | {"groups": []}])
    batch.pop("groups", None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    out = model(**batch)
    (out.loss + out.gate_penalty).backward()
    optimizer.step()
    found = shape(recipe, stage).model()
    trained_parts(found, stage)
    counted = standing(found, Setup(stage=stage, gpus=1, zero=0, half=False))
    assert counted.weights == sum(p.nbytes for p in model.parameters())
    assert counted.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert counted.optimizer == sum(value.nbytes for value in states if value.ndim)


@pytest.mark.parametrize(("zero", "shares"), [(0, (1, 1, 1)), (1, (1, 1, 4)), (2, (1, 4, 4)), (3, (4, 4, 4))])
def test_zero_spreads_states_then_gradients_then_weights(recipe, zero, shares):
    model = shape(recipe).model()
    trained_parts(model, "stage1")
    every = sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = standing(model, Setup(stage="stage1", gpus=4, zero=zero, half=True))
    wanted = (2 * every, 2 * learning, 12 * learning)
    for value, whole, share in zip(
        (found.weights, found.gradients, found.optimizer), wanted, shares, strict=True
    ):
        assert whole / share <= value < whole / share + 12


# --- simulated ---


def real_peak(model, batch) -> int:
    """Most bytes that the allocator of the CPU has given out at a time, as torch's profiler saw it."""
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True, record_shapes=True) as seen:
        out = model(**batch)
        (out.loss + out.gate_penalty).backward()
    now, most, gradients = 0, 0, {}
    todo, events = list(seen.profiler.kineto_results.experimental_event_tree()), []
    while todo:
        event = todo.pop()
        todo += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    del out, gradients
    for _, size in sorted(events, key=lambda one: one[0]):
        now += size
        most = max(most, now)
    return most


@pytest.mark.parametrize("parts", [(), ("llm", "vision_tower")], ids=["kept", "recomputed"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_simulated_peak_is_that_of_a_real_step(tiny, recipe, stage, parts):
    loaded = fresh(tiny)
    model = train_only(loaded.model.train(), trainable_prefixes(loaded.model, stage))
    learns = stage != "stage1"
    recompute_parts(model, tuple(part for part in parts if part != "vision_tower" or learns))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    row = video_row(loaded, videos(tiny)[0], answer="00 red circle left " * 20)
    batch = DataCollatorForSupervisedDataset(loaded.processor.pad_id)([row | {"groups": []}])
    batch.pop("groups", None)
    model.config.use_cache = False
    real_peak(model, batch)  # the first call makes what later ones keep
    real = real_peak(model, batch)
    load = Load(
        rows=1,
        tokens=batch["input_ids"].shape[1],
        frames=len(batch["frame_times"]),
        learned=int((batch["labels"] != -100).sum()),
    )
    found = activations(shape(recipe), Setup(stage=stage, gpus=1, zero=0, half=False, recompute=parts), load)
    given = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
    assert found.most - given == pytest.approx(real, rel=0.05), (found, given, real)


@pytest.mark.parametrize("stage", ["stage1", "stage3"])
def test_a_deep_model_follows_from_two_shallow_ones(recipe, stage):
    base = shape(recipe, stage)
    deep = type(base)(base.target, base.plain | {"num_hidden_layers": 5, "layer_types": None}, base.mm)
    setup, load = Setup(stage=stage, gpus=1, zero=0, half=True), Load(rows=2, tokens=90, frames=9, learned=20)
    guessed, direct = activations(deep, setup, load), simulated(deep, deep.depths, setup, load)
    assert (guessed.see, guessed.read, guessed.back) == (direct.see, direct.read, direct.back)


# --- the command ---


def plan(recipe, out, *words, code=0) -> dict:
    line = ["plan", "--recipe", str(recipe), "--stage", "stage3", "--workers", "0", "--out", str(out)]
    assert main([*line, "--gpus", "2", *words]) == code
    return json.loads((out / "plan.json").read_text())


def test_steps_tokens_and_frames_are_those_of_the_run(tiny, recipe, tmp_path):
    found = plan(recipe, tmp_path, "--gpu", "a100-80", "--price", "2", "--num_train_epochs", "3")
    settings = read_settings(["--recipe", str(recipe), "--stage", "stage3"])
    loaded = fresh(tiny)
    processor = loaded.processor.with_media(**settings.data.media())
    data = make_supervised_data_module(processor, settings.data.data_path, 16384)["train_dataset"]
    rows = [data[index] for index in range(sum(ROWS))]
    assert found["samples"] == sum(ROWS) and found["step_rows"] == 4
    assert found["steps"] == 9  # 10 rows, 4 in a step, 3 epochs of 3 steps
    tokens = sum(len(one["input_ids"]) for one in rows)
    frames = sum(len(one.get("frame_times", ())) for one in rows)
    assert found["step_tokens"] == pytest.approx(4 * tokens / 10)
    assert found["step_frames"] == pytest.approx(4 * frames / 10)
    assert found["hours"] == pytest.approx(found["flops"] / (2 * 312e12 * 0.35) / 3600)
    assert found["cost"] == pytest.approx(found["hours"] * 2 * 2)
    assert found["needed"] == pytest.approx(sum(row["bytes"] for row in found["memory"]))
    assert found["recomputed"] < found["kept"] and found["fits"]


def test_the_longest_clip_is_the_last_that_fits(recipe, tmp_path):
    said = ["--gpu", "4090", "--rows", "10", "--seconds", "4", "--text_tokens", "20"]
    free = plan(recipe, tmp_path, *said)["clip"]
    assert (free["frames"], free["bound"]) == (8, "--video_num_frames")
    longest = free["tokens"] - 1
    short = plan(recipe, tmp_path, *said, "--model_max_length", str(longest))["clip"]
    assert short["bound"] == "--model_max_length" and short["tokens"] <= longest and 0 < short["frames"] < 8
    more = ["--video_num_frames", "400", "--model_max_length", "100000"]
    tight = ["--gpu_memory_gib", "1.52", "--gpu_tflops", "10"]
    by_memory = plan(recipe, tmp_path, *said[2:], *more, *tight)
    assert by_memory["clip"]["bound"] == "memory" and 0 < by_memory["clip"]["frames"] < 400


def test_what_does_not_fit_has_exit_code_1(recipe, tmp_path, capsys):
    words = ["--gpu_memory_gib", "1.5", "--gpu_tflops", "10", "--rows", "10"]
    assert not plan(recipe, tmp_path, *words, code=1)["fits"]
    assert "does not fit" in capsys.readouterr().out


def test_the_published_model_needs_no_file(recipe, capsys):
    first, third = (shape("7b", stage) for stage in ("stage1", "stage3"))
    assert first == third and first.depths == (28, 27)
    model = first.model()
    rows = {row.part: row for row in trained_parts(model, "stage1")}
    assert rows["resampler"].trainable == 68_619_264  # as in test_paper_sizes.py
    assert round(sum(row.parameters for row in rows.values()) / 1e9, 1) == 8.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "7b", "--stage", "stage1", "--gpu", "h100"], "To plan without data: --rows"),
        (["--recipe", "tiny", "--gpu", "h1000", "--rows", "3"], "Did you mean 'h100'"),
        (["--recipe", "tiny", "--rows", "3"], "name the card"),
        (["--recipe", "7b", "--gpu", "h100", "--rows", "3", "--lora_enable", "True"], "not planned for"),
        (["--recipe", "7b", "--gpu", "h100", "--rows", "3", "--seq_parallel_size", "2"], "not planned for"),
        (["--recipe", "7b", "--gpu", "h100", "--rows", "3", "--efficiency", "1.2"], "share of the peak"),
        (["--recipe", "7b", "--gpu", "h100", "--rows", "3", "--deepspeed", "zero9.json"], "zero9.json"),
        (["--recipe", "7b", "--gpu", "h100", "--rows", "3", "--vision_tower", "no/where"], "published shape"),
    ],
)
def test_wrong_usage_is_said_and_coded(capsys, words, message):
    assert main(["plan", "--gpus", "8", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("card", CARDS)
def test_cards_have_decimal_gigabytes(card):
    found = hardware(card, 8, None, None, None)
    assert found.memory_gib == pytest.approx(CARDS[card][0] * GIB_OF_GB) and found.tflops == CARDS[card][1]
    assert hardware(card, 1, 10.0, None, 1.0).memory_gib == 10.0


@pytest.mark.parametrize("word", ["plan", "check", "stats", "train"])
def test_a_mixture_that_cannot_be_opened_is_wrong_usage(recipe, tmp_path, capsys, word):
    """A broken archive among the data sets: its name and what is wrong with it, no traceback."""
    (tmp_path / "broken.tar").write_bytes(b"x" * 2048)
    words = ["--recipe", str(recipe), "--stage", "stage1", "--data_path", str(tmp_path / "broken.tar")]
    own = {"plan": ["plan", "--gpus", "1", "--gpu", "a6000"], "train": ["train"]}.get(word, ["data", word])
    assert main([*own, *words]) == 2
    assert f"error: {tmp_path / 'broken.tar'}: damaged archive" in capsys.readouterr().err
