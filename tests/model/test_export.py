"""An exported folder is the checkpoint: equal weights, logits and answers; or it is not there."""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import ROOT, run, text_rows, video_rows, write_recipe
from tiny_world import fresh, video_row, videos
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from quicksviewer.conversation import TEMPLATES, Turn, render, with_end_of_text
from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.model import export as word
from quicksviewer.model import export_child, export_probe, export_weights, raw_weights
from quicksviewer.model.builder import (
    ADAPTER_FILE,
    OTHER_FILE,
    load_pretrained_model,
)
from quicksviewer.model.chat_jinja import chat_template
from quicksviewer.model.export import export
from quicksviewer.model.export_probe import Answer, Proof, aligned, verify
from quicksviewer.model.export_weights import weights_of
from quicksviewer.model.folder_aside import folder_aside
from quicksviewer.model.made_weights import load
from quicksviewer.utils.manifest import MANIFEST, check, write_manifest


@pytest.fixture(scope="module")
def lora_run(tiny, tmp_path_factory) -> Path:
    """A run of two processes with LoRA under ZeRO-3, with a checkpoint that has its shards."""
    folder = tmp_path_factory.mktemp("lora")
    settings = dict(max_steps=2, learning_rate=2e-2, save_strategy="steps", save_steps=2)
    recipe = write_recipe(tiny, folder, video_rows(tiny, 2) + text_rows(tiny, 2), **settings)
    lora = ["--lora_enable", "True", "--lora_dropout", "0", "--lora_r", "4"]
    run(recipe, folder / "run", 2, *lora, "--deepspeed", str(ROOT / "zero3.json"))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(lora_run, tmp_path_factory):
    """The run as a folder, and what its probe said."""
    out = tmp_path_factory.mktemp("exported") / "model"
    return out, export(lora_run, out, max_shard_gb=1e-4)


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict, wanted: dict) -> None:
    missing = wanted.keys() - found.keys()
    assert missing <= {"lm_head.weight"}, missing  # tied
    assert [name for name, tensor in found.items() if not torch.equal(tensor.float(), wanted[name])] == []


def ask_here(folder: Path, clip: Path) -> Answer:
    """What the child does, in this process: it is not started every time."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer"
        export_child.main(str(folder), str(clip), str(answer))
        return Answer.load(answer)


def batch_of(tiny, loaded):
    return DataCollatorForSupervisedDataset(loaded.processor.pad_id)([video_row(loaded, videos(tiny)[0])])


# --- equal ---


def test_a_lora_run_under_zero_3_loads_with_plain_transformers_and_says_the_same(tiny, lora_run, exported):
    out, proof = exported
    check(out)
    assert proof.largest_difference == 0 and proof.text
    assert len(raw_weights.weight_files(out)) > 2
    before = load_pretrained_model(str(lora_run))
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    processor = AutoProcessor.from_pretrained(out)
    assert_equal(state_of(model), state_of(before.model))
    assert processor.to_dict() == before.processor.to_dict()
    batch = batch_of(tiny, before)
    with torch.no_grad():
        assert torch.equal(aligned(model)(**batch).logits, aligned(before.model)(**batch).logits)
    question = [{"role": "user", "content": [{"type": "video", "path": str(videos(tiny)[1])}]}]
    answers = [before.model.chat(question, before.processor, max_new_tokens=12)]
    answers.append(model.chat(question, processor, max_new_tokens=12))
    assert answers[0] and answers[0] == answers[1]
    assert model.generation_config.eos_token_id == processor.stop_ids and model.config.use_cache


def test_the_merge_changes_what_was_adapted_and_nothing_is_lost(tiny, lora_run):
    found = weights_of(lora_run)
    assert found.merged == 14 and found.base == tiny / "qwen2"
    base = load_file(tiny / "qwen2" / "model.safetensors")
    changed = {n for n, t in found.tensors.items() if n in base and not torch.equal(load(t), base[n])}
    assert {name.split(".")[-2] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


def test_shards_give_the_weights_of_the_files(lora_run):
    checkpoint = lora_run / "checkpoint-2"
    shards, files = weights_of(checkpoint, masters=True), weights_of(checkpoint)
    assert shards.from_shards and not files.from_shards
    assert shards.tensors.keys() == files.tensors.keys()
    assert [n for n, t in shards.tensors.items() if not torch.equal(load(t), load(files.tensors[n]))] == []


def test_a_checkpoint_of_shards_alone_is_exported_as_deepspeed_joins_it(lora_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_probe, "ask_folder", ask_here)
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.symlink_to(lora_run / "checkpoint-2")
    proof = export(checkpoint, tmp_path / "made", masters=True)
    assert proof.largest_difference == 0
    found = {name: load(t) for name, t in raw_weights.read_folder(tmp_path / "made").items()}
    assert_equal(found, {name: load(t) for name, t in weights_of(lora_run).tensors.items()})


@pytest.mark.parametrize(("backbone", "dtype"), [("llama", "bf16"), ("minimind", "fp16")])
def test_whole_checkpoints_of_other_backbones_in_other_dtypes(tiny, tmp_path, backbone, dtype, monkeypatch):
    if backbone == "llama":
        monkeypatch.setattr(export_probe, "ask_folder", ask_here)
    loaded = fresh(tiny, backbone)
    loaded.model.save_pretrained(tmp_path / "run")
    loaded.processor.save_pretrained(tmp_path / "run")
    words = [str(tmp_path / "run"), str(tmp_path / "made"), "--dtype", dtype]
    assert word.main(words) == 0
    made = load_pretrained_model(str(tmp_path / "made"))
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert made.model.dtype == kind
    wanted = {name: t.to(kind).float() for name, t in loaded.model.state_dict().items()}
    assert_equal(state_of(made.model), wanted)


def test_an_adapter_that_is_more_than_changes_of_weights_is_refused(lora_run, tmp_path):
    for path in lora_run.iterdir():
        if path.is_file() and path.name != MANIFEST:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / ADAPTER_FILE).read_text())
    (tmp_path / ADAPTER_FILE).write_text(json.dumps(settings | {"modules_to_save": ["lm_head"]}))
    found = weights_of(tmp_path).tensors["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match="sets modules_to_save"):
        load(found)


# --- what a folder holds ---


def test_the_card_has_the_facts_of_the_run(lora_run, exported):
    out, _ = exported
    card = (out / "README.md").read_text()
    settings = json.loads((lora_run / "run.json").read_text())
    for fact in (
        settings["data_sha256"],
        "| stages | stage3 <- `qwen2` |",
        "| LoRA | parts llm, r 4,",
        "| DeepSpeed | zero3.json |",
        "A LoRA adapter of",
        "| loss_tokens |",
        "| llm | ",
        "| torch | ",
        raw_weights.weight_files(out)[0].name,
    ):
        assert fact in card
    assert str(lora_run.parent) not in card  # no paths of the machine
    digests = json.loads((out / MANIFEST).read_text())["files"]
    assert all(digests[path.name]["sha256"] in card for path in raw_weights.weight_files(out))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation", [True, False])
def test_the_chat_template_of_other_programs_writes_what_ours_writes(tiny, name, generation):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "qwen2")
    tokenizer.chat_template = chat_template(TEMPLATES[name])
    talk = [Turn("user", ' <video>\n{{ "quoted" }}\\n '), Turn("assistant", " b\n"), Turn("user", "c")]
    for turns in (talk, [Turn("system", "Be brief."), *talk], talk[:1]):
        spans = with_end_of_text(tokenizer, render(TEMPLATES[name], turns, generation))
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        parts = [{"type": "video"}, {"type": "text", "text": turns[0].text.removeprefix(" <video>")}]
        text = "".join(span.text for span in spans)
        given = dict(tokenize=False, add_generation_prompt=generation)
        assert tokenizer.apply_chat_template(messages, **given) == text
        if turns[0].role == "user" and not TEMPLATES[name].strip:
            messages[0] = {"role": "user", "content": [{"type": "text", "text": " "}, *parts]}
            assert tokenizer.apply_chat_template(messages, **given) == text


def test_a_folder_can_be_asked_again_and_a_changed_one_is_found_out(exported, tmp_path, monkeypatch, capsys):
    out, proof = exported
    monkeypatch.setattr(export_probe, "ask_folder", ask_here)
    assert verify(out) == Proof(**{**vars(proof), "largest_logit": verify_logit(out)})
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in out.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(out)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(out)).write_bytes(path.read_bytes())
    (copy / "generation_config.json").write_text("{}")
    assert word.main(["--verify", str(copy)]) == 1
    assert "not what its manifest" in capsys.readouterr().err


def verify_logit(out: Path) -> float:
    return Answer.load(out / "probe" / "expected.safetensors").logits.abs().max().item()


# --- refused, failed, killed ---


class Evil:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("name", ["a_optim_states.pt", "x_zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_nothing_that_lies_beside_shards_is_run_by_an_export(lora_run, tmp_path, capsys, name):
    checkpoint, trace = tmp_path / "checkpoint", tmp_path / "trace"
    shutil.copytree(lora_run / "checkpoint-2", checkpoint)
    torch.save({"optimizer_state_dict": Evil(trace)}, checkpoint / (checkpoint / "latest").read_text() / name)
    write_manifest(checkpoint)
    assert word.main([str(checkpoint), str(tmp_path / "made"), "--masters"]) == 1
    assert f"{name} is none of ZeRO-3's shards" in capsys.readouterr().err
    assert not trace.exists() and not (tmp_path / "made").exists()


def test_the_proof_opens_shards_without_running_them(lora_run, tmp_path, monkeypatch):
    """A file that takes the place of a shard after our own reader has seen it."""
    checkpoint, trace = tmp_path / "checkpoint", tmp_path / "trace"
    shutil.copytree(lora_run / "checkpoint-2", checkpoint)
    shard = next(checkpoint.glob("*/zero_pp_rank_1_*_optim_states.pt"))

    def then_swap(*words):
        write_settings(*words)
        shard.unlink()
        torch.save({"optimizer_state_dict": Evil(trace)}, shard)
        write_manifest(checkpoint)

    write_settings = word.write_settings
    monkeypatch.setattr(word, "write_settings", then_swap)
    with pytest.raises(ValueError, match=f"{shard.name} cannot be read"):
        export(checkpoint, tmp_path / "made", masters=True)
    assert not trace.exists() and {p.name for p in tmp_path.iterdir()} == {"checkpoint"}


def test_a_model_that_came_out_different_is_not_kept(lora_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_probe, "ask_folder", ask_here)
    monkeypatch.setattr(export_weights, "merge", lambda checkpoint, layer, weight, parts: weight)
    assert word.main([str(lora_run), str(tmp_path / "made")]) == 1
    assert "the exported model is another one: its logits differ by up to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_with_names(tiny, lora_run, tmp_path, capsys):
    out = tmp_path / "made"
    with pytest.raises(ValueError, match="model type of a checkpoint that can be exported"):
        export(tiny / "qwen2", out)
    with pytest.raises(ValueError, match="name its folder with --model-base"):
        export(lora_run, out, base=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no ZeRO-3 shards"):
        export(lora_run, out, masters=True)
    with pytest.raises(SystemExit):
        word.main([str(lora_run)])
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in lora_run.iterdir():
        if path.is_file() and path.name != MANIFEST:
            (copy / path.name).write_bytes(path.read_bytes())
    tensors = load_file(copy / OTHER_FILE)
    del tensors["vision_resampler.query"]
    save_file(tensors | {"more.weight": torch.ones(2)}, copy / OTHER_FILE)
    with pytest.raises(
        ValueError, match=r"2 weights do not fit.*\n.*missing: vision_resampler.query\n.*more"
    ):
        export(copy, out)
    with pytest.raises(ValueError, match="exists"):
        export(lora_run, copy)
    with folder_aside(out), pytest.raises(ValueError, match=r"another run is writing .*made"):
        export(lora_run, out)
    (tmp_path / "made.partial").rmdir()
    assert not out.exists() and not (tmp_path / "made.partial").exists()


def killed(work) -> bool:
    """Do some work in a forked process. Whether it was killed."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


STEPS = (
    *("write_weights", "write_settings", "write_clip", "ask_checkpoint"),
    *("prove", "write_card", "seal_weights"),
)


def test_a_kill_at_any_instant_leaves_no_folder_and_no_obstacle(lora_run, tmp_path, monkeypatch):
    out, answer = tmp_path / "made", Answer(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1), "", "{}")
    proof = Proof("?", "", {}, 1, 0.0, 1.0)
    monkeypatch.setattr(word, "ask_checkpoint", lambda *_: answer)  # what these do is tested above
    monkeypatch.setattr(word, "prove", lambda *_: proof)
    kills = 0
    for instant in (0, 1, 5, 40):
        left = [instant]

        def report(_size, left=left):
            left[0] -= 1
            if left[0] < 0:
                die()

        kills += killed(lambda report=report: export(lora_run, out, report=report))
        assert not out.exists()
    for step in STEPS:
        with monkeypatch.context() as patch:
            patch.setattr(word, step, die)
            kills += killed(lambda: export(lora_run, out))
        assert not out.exists() and (tmp_path / "made.partial").exists()
    assert kills == 4 + len(STEPS)
    export(lora_run, out)
    check(out)
    assert {path.name for path in tmp_path.iterdir()} == {"made"}
