"""Reading, measuring, the page, memory, backends and the command, on a tiny model."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from quicksviewer.__main__ import main
from quicksviewer.qwen_vl_finetune import inference, model_setup, utils
from quicksviewer.qwen_vl_finetune.backends import BACKENDS, backend
from quicksviewer.qwen_vl_finetune.evaluation import evaluate, read_pictures, summary
from quicksviewer.qwen_vl_finetune.lora import PARTS, LoraSettings
from quicksviewer.qwen_vl_finetune.page import write_page
from quicksviewer.qwen_vl_finetune.settings import OcrSettings, using

CONFIG = """
model_name: synthetic
dataset_name: synthetic
max_samples: 24
tiny: {width: 32, steps: 2, batch_size: 4, texts: 40}
lora: {targets: {vit: [], merger: [], lm: []}}
batch_size: 2
gradient_accumulation_steps: 2
max_steps: 3
eval_samples: 6
eval_batch_size: 4
max_new_tokens: 6
"""


def test_a_batch_reads_what_its_pictures_alone_read(loaded, formulas):
    pictures = [formulas[n]["image"] for n in range(5)]
    together = read_pictures(loaded.model, loaded.processor, pictures, max_new_tokens=8)
    alone = [read_pictures(loaded.model, loaded.processor, [p], max_new_tokens=8)[0] for p in pictures]
    assert together == alone


def test_inference_answers_and_streams_the_same(loaded, formulas, capsys):
    picture = formulas[0]["image"]
    greedy = read_pictures(loaded.model, loaded.processor, [picture], max_new_tokens=8)[0][0]
    options = dict(max_new_tokens=8, temperature=0)
    said = inference.run_inference(loaded.model, loaded.processor, picture, **options)
    assert said == greedy and capsys.readouterr().out.strip() == greedy
    quiet = inference.run_inference(loaded.model, loaded.processor, picture, use_streamer=False, **options)
    assert quiet == greedy and capsys.readouterr().out == ""
    assert isinstance(inference.run_inference(loaded.model, loaded.processor, picture, max_new_tokens=3), str)


def test_no_default_of_a_checkpoint_reaches_a_greedy_answer(loaded, formulas):
    model, processor, picture = loaded.model, loaded.processor, formulas[0]["image"]
    asked = dict(max_new_tokens=8)
    expected = read_pictures(model, processor, [picture], **asked)
    inputs = inference.prepare_inputs(processor, picture, inference.prepare_messages())
    model.generation_config.update(repetition_penalty=50.0, do_sample=True, top_k=3, temperature=9.0)
    written = model.generate(**inputs, **asked, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    penalised = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert penalised != expected[0][0], "the penalty must be one that shows"
    assert read_pictures(model, processor, [picture], **asked) == expected
    said = inference.generate_response(model, processor, inputs, **asked, temperature=0, use_streamer=False)
    assert said == expected[0][0]


def test_an_evaluation_counts_what_it_has_read(loaded, formulas, tmp_path):
    told = []
    settings = OcrSettings(eval_samples=5, eval_batch_size=2, max_new_tokens=6)
    result = evaluate(loaded.model, loaded.processor, formulas, settings, lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)] and result["samples"] == 5
    assert [record["expected"] for record in result["records"]] == formulas.texts[:5]
    assert result["not_ended"] == sum(not record["ended"] for record in result["records"])
    page = tmp_path / "page.html"
    said = [("<b>", 2.0), (formulas.texts[1], 0.0), (r"\frac{", 1.0), ("", 1.0)]
    records = [
        dict(index=n, expected=formulas.texts[n], predicted=text, ended=True, cer=cer)
        for n, (text, cer) in enumerate(said)
    ]
    write_page(page, "A & B", formulas, {**summary(records), "records": records}, result)
    text = page.read_text()
    assert "A &amp; B" in text and "&lt;b&gt;" in text and "<b>" not in text and "<script" not in text
    assert text.count("data:image/png;base64,") == 4 + 2, "four pictures, two answers that can be drawn"
    assert "Read wrongly: 3 of 4" in text and "nothing to draw" in text and "Expected" in text


def test_memory_without_a_gpu(capsys):
    assert utils.get_gpu_memory_info() is None
    utils.print_memory_usage()
    assert capsys.readouterr().out == "CUDA is not available\n"
    assert model_setup.show_memory_stats() == (0.0, 0.0)
    assert utils.calculate_memory_difference(1.5, 3.25, 7) == (1.75, 25.0)
    assert utils.calculate_memory_difference(0, 0, 0) == (0, 0.0)


def test_unsloth_is_named_where_it_is_missing():
    with pytest.raises(
        ModuleNotFoundError, match="unsloth is missing.* in an environment of its own, pip install uns"
    ):
        backend("unsloth").load("any", None)
    with pytest.raises(ValueError, match="unknown backend 'unslot'. Did you mean 'unsloth'"):
        backend("unslot")
    with pytest.raises(ValueError, match="unsloth runs on CUDA only"):
        backend("unsloth").load("any", None, "cpu")


def test_unsloth_gets_the_published_settings(monkeypatch):
    """unsloth cannot be imported without a GPU: a stand-in writes down what it would be asked."""
    asked = {}

    def note(name, result=None):
        return lambda *args, **kwargs: asked.setdefault(name, (args, kwargs)) and result

    fast = SimpleNamespace(
        from_pretrained=note("load", ("model", "processor")), get_peft_model=note("attach", "adapted")
    )
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastVisionModel=fast))
    found = BACKENDS["unsloth"].load("a/name", None)
    assert (found.model, found.processor, found.bits) == ("model", "processor", 4)
    assert asked["load"] == (("a/name",), {"load_in_4bit": True, "use_gradient_checkpointing": "unsloth"})
    assert BACKENDS["unsloth"].attach("model", LoraSettings()) == "adapted"
    towers = dict(finetune_vision_layers=True, finetune_language_layers=True)
    kinds = dict(
        finetune_attention_modules=True, finetune_mlp_modules=True, use_rslora=False, loftq_config=None
    )
    sizes = dict(r=16, lora_alpha=16, lora_dropout=0.0, bias="none", random_state=3407)
    assert asked["attach"] == (("model",), towers | kinds | sizes)
    for targets, message in (({"lm": ("q_proj",)}, "no patterns"), ({"merger": (), "lm": ()}, "name vit")):
        with pytest.raises(ValueError, match=message):
            BACKENDS["unsloth"].attach("model", LoraSettings(targets=targets))


def test_the_command_measures_trains_and_measures_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr.yaml").write_text(CONFIG)
    assert main(["finetune", "ocr", "--config", "ocr.yaml", "--output-dir", "out"]) == 0
    out = capsys.readouterr().out
    assert "step 3 of 3: loss" in out and "measured before training: 6 of 6 formulas" in out
    assert re.search(r"^cer +\d\.\d{3} +\d\.\d{3}$", out, re.MULTILINE)
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["before"]["samples"] == result["after"]["samples"] == 6
    assert result["about"]["settings"]["max_steps"] == 3
    assert (tmp_path / "out" / "page.html").read_text().count("<img") >= 6
    settings = OcrSettings(eval_samples=6, eval_batch_size=4, max_new_tokens=6)
    with using(settings):
        model, processor = model_setup.load_lora_model("out/lora_model", device="cpu")
        from quicksviewer.qwen_vl_finetune.rows import open_rows

        again = evaluate(model, processor, open_rows("synthetic", "test", 6))
    assert again["records"] == result["after"]["records"], "the saved adapters are the measured ones"
    names = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert all(any(prefix in name for name in names) for prefix in PARTS.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["orc"], "unknown task 'orc'. Did you mean 'ocr'"),
        (["ocr", "--config", "gone.yaml"], "gone.yaml"),
        (
            ["ocr", "--model-name", "nowhere/at/all", "--dataset-name", "synthetic"],
            "neither a folder nor a model",
        ),
        (["ocr", "--max-steps", "0"], "max_steps must be at least 1"),
        (["ocr", "--dataset-name", "gone.jsonl"], "there is no file gone.jsonl"),
    ],
)
def test_wrong_usage_says_what_is_wrong(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--output-dir", str(tmp_path)] if words[0] == "ocr" else []
    assert main(["finetune", *words, *settings]) == 2
    assert message in capsys.readouterr().err
