"""Seed 004 (MiniMindVLM): every code block of the document, and the functions that stand for its examples.

Replaced are sizes, paths of towers and pictures, and the one log line of the document that Python cannot
format.
"""

import json

import pytest
import torch
from blocks import Document, compat_on_path, run
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quicksviewer.minimind import (
    MiniMindVLM,
    VLLMconfig,
    batch_multimodal_inference,
    benchmark_model_performance,
    diagnose_model_issues,
    make_optimizer,
    multimodal_generate,
    profile_model_execution,
    train_multimodal_model,
)
from quicksviewer.synthetic.tiny import make_tower

DOCUMENT = Document("004_minimind_vlm.md")
PATCHES = 196


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Small CLIP towers with the patches of the published ones, and the pictures that the document opens."""
    root = tmp_path_factory.mktemp("seed_004")
    shape = dict(
        hidden_size=24, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1, image_size=224
    )
    make_tower(root / "base", "clip", patch_size=16, **shape)
    make_tower(root / "large", "clip", patch_size=14, **shape | {"hidden_size": 32})
    for number, name in enumerate(("example", "cat", "image_0", "image_1", "image_2")):
        Image.effect_noise((64, 48), 40 + 20 * number).convert("RGB").save(root / f"{name}.jpg")
    return root


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes without merges, in which the placeholder of the document has the id that it says."""
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter != "@"]
    letters = ["<s>", "</s>", "<pad>", *letters]
    letters.insert(34, "@")
    fast = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=fast, **special)


@pytest.fixture
def words(root):
    small = {
        "vocab_size=50000": "vocab_size=300",
        "vocab_size=100000": "vocab_size=300",
        "hidden_size=768": "hidden_size=32",
        "hidden_size=1024": "hidden_size=32",
        "num_attention_heads=12": "num_attention_heads=4",
        "num_attention_heads=16": "num_attention_heads=4",
        "num_key_value_heads=8": "num_key_value_heads=2",
        "num_hidden_layers=12": "num_hidden_layers=2",
        "num_hidden_layers=24": "num_hidden_layers=2",
        "intermediate_size=3072": "intermediate_size=64",
    }
    paths = {
        "./models/clip-vit-base-patch16": str(root / "base"),
        "openai/clip-vit-large-patch14": str(root / "large"),
        "example.jpg": str(root / "example.jpg"),
        "cat.jpg": str(root / "cat.jpg"),
        "image_{i}.jpg": f"{root}/image_{{i}}.jpg",
    }
    broken = "{aux_loss:.4f if isinstance(aux_loss, float) else aux_loss.item():.4f}"
    return small | paths | {broken: "{float(aux_loss):.4f}"}


@pytest.fixture
def names(words, tokenizer, tmp_path, monkeypatch):
    """What the first block of the document leaves, with a tokenizer, which the document takes for granted."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with compat_on_path():
        yield run(
            DOCUMENT, DOCUMENT.block("基础使用示例"), words, {"__name__": "seed", "tokenizer": tokenizer}
        )


def batches(model, tokenizer, count: int = 2) -> list[dict]:
    """Rows that say the same of every picture: something to learn at once."""
    generator = torch.Generator().manual_seed(0)
    text = tokenizer("see " + "@" * PATCHES + " red circle")["input_ids"]
    ids = torch.tensor([text, text])
    labels = ids.masked_fill(torch.arange(len(text)) < 4 + PATCHES, -100)
    return [
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(2, 1, 3, 224, 224, generator=generator),
            "labels": labels,
        }
        for _ in range(count)
    ]


# --- the document ---


def test_the_first_block_gives_the_probabilities_of_the_next_token(names):
    model = names["model"]
    assert isinstance(model, MiniMindVLM) and model.params.num_hidden_layers == 2
    assert names["logits"].shape == (1, 1, 300)
    assert names["probabilities"].sum().item() == pytest.approx(1, abs=1e-5)
    assert names["pixel_values"].shape == (1, 1, 3, 224, 224)


def test_the_block_of_experts_fits_another_tower(names, words, capsys):
    run(DOCUMENT, DOCUMENT.block("MoE多专家模型配置"), words, names)
    model = names["moe_model"]
    assert len(model.params.image_ids) == 256 and model.params.ve_hidden_size == 32
    assert f"{sum(p.numel() for p in model.parameters()):,}" in capsys.readouterr().out


def test_the_block_of_batches_agrees_with_ours_and_ours_with_single_pairs(names, words, tokenizer):
    names["model"].eval()
    run(DOCUMENT, DOCUMENT.block("批量推理示例"), words, names)
    model, texts, images = (names[name] for name in ("model", "texts", "images"))
    assert len({len(tokenizer(text)["input_ids"]) for text in texts}) == 1  # the document needs equal lengths
    found = batch_multimodal_inference(model, texts, images, batch_size=2, tokenizer=tokenizer)
    assert found == names["predictions"]
    uneven = ["a", "what is to be seen here?", ""]
    alone = [
        batch_multimodal_inference(model, [text], [image], tokenizer=tokenizer)[0]
        for text, image in zip(uneven, images, strict=True)
    ]
    assert batch_multimodal_inference(model, uneven, images, tokenizer=tokenizer) == alone


def test_the_block_of_generation_writes_what_ours_writes(names, words, tokenizer):
    run(DOCUMENT, DOCUMENT.block("自回归文本生成"), words, names)
    assert isinstance(names["generated_description"], str)
    model, image = names["model"], names["image"]
    model.tokenizer = tokenizer
    chance = dict(max_length=12, temperature=0.7, top_k=40, top_p=0.9)
    torch.manual_seed(3)
    theirs = names["multimodal_generate"](model, "see", image, **chance)
    torch.manual_seed(3)
    assert multimodal_generate(model, "see", image, **chance) == theirs


def test_the_block_of_training_learns(names, words, tokenizer, capsys):
    run(DOCUMENT, DOCUMENT.block("训练循环示例"), words, names)
    model = names["model"]
    optimizer, scheduler = names["optimizer"], names["scheduler"]
    for group, rate in zip(optimizer.param_groups, (5e-3, 5e-3), strict=True):
        group["lr"] = rate
    names["train_multimodal_model"](model, batches(model, tokenizer), optimizer, 6)
    printed = [line for line in capsys.readouterr().out.splitlines() if "completed" in line]
    losses = [float(line.split("Avg_Loss=")[1].split(",")[0]) for line in printed]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    assert scheduler.T_max == 1000


def test_the_block_of_measurements_runs(names, words, tmp_path, capsys):
    run(DOCUMENT, DOCUMENT.block("性能分析和监控"), words, names)
    inputs = {"input_ids": names["input_ids"], "pixel_values": names["pixel_values"]}
    theirs = names["benchmark_model_performance"](names["model"], inputs, num_runs=2)
    ours = benchmark_model_performance(names["model"], inputs, num_runs=2)
    assert set(theirs) <= set(ours)
    names["profile_model_execution"](names["model"], inputs)
    assert json.loads((tmp_path / "model_trace.json").read_text())["traceEvents"]


def test_the_block_of_options_describes_the_presets(names, words):
    typing = {"Optional": __import__("typing").Optional, "List": __import__("typing").List}
    scope = {"__name__": "seed", **typing, "llmconfig": VLLMconfig.__mro__[1], "MiniMindVLM": MiniMindVLM}
    with torch.device("meta"):  # a hundred million parameters, of which only the number is asked
        run(DOCUMENT, DOCUMENT.block("完整配置选项"), {}, scope)
    assert scope["small_model"].num_parameters() == 136_305_408 + scope["configs"]["small"].hidden_size * 769
    assert list(scope["configs"]) == ["tiny", "small", "medium", "large_moe"]
    default = VLLMconfig()
    theirs = scope["VLLMconfig"]()
    for name in ("vocab_size", "image_special_token", "image_ids", "dropout", "rope_theta", "seq_aux"):
        assert getattr(theirs, name) == getattr(default, name), name


def test_the_block_of_diagnosis_runs_and_ours_sees_what_it_misses(names, words, capsys):
    run(
        DOCUMENT,
        DOCUMENT.block("常见问题解决"),
        words | {"torch.randint(0, 1000": "torch.randint(35, 300"},
        names,
    )
    assert "诊断" in capsys.readouterr().out
    problems = diagnose_model_issues(names["model"], names["sample_input"])
    assert any("does not fit the pictures" in problem for problem in problems)
    assert any("forward fails" in problem for problem in problems)


# --- ours alone ---


def test_greedy_text_is_the_same_with_and_without_a_cache(names, tokenizer):
    model, image = names["model"], Image.open(names["image"].filename)
    for chance in ({"temperature": 0}, {"top_k": 1}, {"temperature": 0, "top_k": 9999, "top_p": 0.5}):
        cached = multimodal_generate(model, "see", image, 8, tokenizer=tokenizer, **chance)
        assert cached == multimodal_generate(
            model, "see", image, 8, tokenizer=tokenizer, use_cache=False, **chance
        )
    ids = torch.tensor([tokenizer("see" + "@" * PATCHES)["input_ids"]])
    pixels = model.image2tensor(image, model.processor)[None]
    for _ in range(8):
        token = model(ids, pixels).logits[0, -1].masked_fill(torch.arange(300) == 34, -torch.inf).argmax()
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
    assert cached == tokenizer.decode(ids[0, 3 + PATCHES :], skip_special_tokens=True)


def test_a_top_k_beyond_the_vocabulary_is_all_of_it(names, tokenizer):
    texts = []
    for top_k in (300, 100_000):
        torch.manual_seed(0)
        texts.append(multimodal_generate(names["model"], "see", None, 6, top_k=top_k, tokenizer=tokenizer))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(temperature=-1), "temperature"),
        (dict(top_p=0), "top_p"),
        (dict(max_length=0), "max_length"),
        (dict(tokenizer=None), "no tokenizer"),
    ],
)
def test_generation_refuses_nonsense(names, tokenizer, asked, message):
    with pytest.raises(ValueError, match=message):
        multimodal_generate(names["model"], "see", None, **{"tokenizer": tokenizer, **asked})


def test_lists_of_different_length_are_refused(names, tokenizer):
    with pytest.raises(ValueError, match="2 texts and 0 images"):
        batch_multimodal_inference(names["model"], ["a", "b"], [], tokenizer=tokenizer)


def test_training_steps_its_schedule_and_leaves_the_tower_alone(names, tokenizer):
    model = names["model"]
    optimizer, scheduler = make_optimizer(model, lr=5e-3, vision_lr=1e-2, steps=12)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in model.vision_encoder.parameters()}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 1e-2]
    history = train_multimodal_model(model, batches(model, tokenizer), optimizer, 6, scheduler)
    assert history[-1]["loss"] < 0.75 * history[0]["loss"] and history[0]["aux_loss"] == 0
    assert scheduler.last_epoch == 12 and optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)


def test_training_refuses_what_is_no_number_and_no_data(names, tokenizer):
    optimizer, _ = make_optimizer(names["model"])
    with pytest.raises(ValueError, match="no batch"):
        train_multimodal_model(names["model"], [], optimizer, 1)
    broken = batches(names["model"], tokenizer)
    broken[1]["pixel_values"][:] = torch.nan
    with pytest.raises(ValueError, match="epoch 0, batch 1: the loss is nan"):
        train_multimodal_model(names["model"], broken, optimizer, 1)


def test_the_profiler_writes_a_trace_and_figures_are_in_order(names, tmp_path, capsys):
    inputs = {"input_ids": names["input_ids"], "pixel_values": names["pixel_values"]}
    figures = benchmark_model_performance(names["model"], inputs, num_runs=5)
    assert 0 < figures["latency_min"] <= figures["latency_p50"] <= figures["latency_p95"]
    assert 0 <= figures["memory_mean"] <= figures["memory_peak"]
    profiler = profile_model_execution(names["model"], inputs, tmp_path / "trace.json")
    assert any("attention" in row.key for row in profiler.key_averages())
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert "p95" in capsys.readouterr().out


def broken_weight(model, sample):
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan


def foreign_id(model, sample):
    sample["input_ids"][0, 0] = 5000


def no_tower(model, sample):
    model.vision_encoder = None


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda model, sample: None, []),
        (broken_weight, ["parameters: .*no numbers", "forward: .*NaN"]),
        (foreign_id, ["config: .*5000, outside", "forward: forward fails: IndexError"]),
        (no_tower, ["vision: no vision encoder", "forward: forward fails: ValueError"]),
    ],
)
def test_a_diagnosis_names_what_is_wrong(names, damage, found, capsys):
    sample = {"input_ids": names["input_ids"].clone(), "pixel_values": names["pixel_values"]}
    damage(names["model"], sample)
    problems = diagnose_model_issues(names["model"], sample)
    assert len(problems) == len(found)
    for problem, pattern in zip(problems, found, strict=True):
        assert __import__("re").match(pattern, problem), problem
    printed = capsys.readouterr().out
    assert all(
        f"{part}:" in printed for part in ("config", "device", "vision", "parameters", "forward", "memory")
    )
