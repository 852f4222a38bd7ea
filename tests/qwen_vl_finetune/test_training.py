"""Training: the seed's hyper-parameters, the mean over targets, adapters that learn to read."""

from functools import cached_property

import pytest
import torch
from transformers import TrainerState, TrainingArguments

from quicksviewer.qwen_vl_finetune import training
from quicksviewer.qwen_vl_finetune.data_processing import (
    Conversations,
    convert_dataset_to_conversations,
    convert_to_conversation,
)
from quicksviewer.qwen_vl_finetune.evaluation import evaluate
from quicksviewer.qwen_vl_finetune.load import load
from quicksviewer.qwen_vl_finetune.lora import PARTS, attach
from quicksviewer.qwen_vl_finetune.model_setup import setup_peft_model
from quicksviewer.qwen_vl_finetune.progress import Progress
from quicksviewer.qwen_vl_finetune.prompts import Collator
from quicksviewer.qwen_vl_finetune.settings import INSTRUCTION, OcrSettings, using
from quicksviewer.qwen_vl_finetune.training import (
    Lines,
    arguments_of,
    setup_trainer,
    show_training_stats,
    train_model,
    with_lines,
)
from quicksviewer.synthetic.formulas import FormulaConfig, FormulaData

PUBLISHED = dict(
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    warmup_steps=5,
    max_steps=30,
    learning_rate=2e-4,
    lr_scheduler_type="linear",
    optim="adamw_8bit",
    weight_decay=0.01,
    logging_steps=1,
    seed=3407,
    output_dir="outputs",
    remove_unused_columns=False,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_trainer_has_the_published_hyper_parameters(loaded, formulas, place):
    trainer = setup_trainer(
        attach(loaded.model), loaded.processor, convert_dataset_to_conversations(formulas)
    )
    assert {name: getattr(trainer.args, name) for name in PUBLISHED} == PUBLISHED
    assert trainer.args.report_to == [] and trainer.data_collator.max_length == 2048
    settings = OcrSettings()
    assert (settings.lora.r, settings.lora.alpha, settings.lora.dropout, settings.lora.seed) == (
        16,
        16,
        0,
        3407,
    )
    assert (settings.max_new_tokens, settings.temperature, settings.min_p) == (128, 1.5, 0.1)


def test_an_optimizer_that_cannot_run_is_replaced_aloud(monkeypatch, caplog):
    monkeypatch.setattr(training, "why_not_quantised", lambda device: "bitsandbytes is missing")
    assert arguments_of(OcrSettings(), torch.device("cpu")).optim == "adamw_torch"
    assert "adamw_torch in place of adamw_8bit: bitsandbytes is missing" in caplog.text


def test_progress_is_told_by_the_first_process_now_and_then(capsys, monkeypatch):
    seconds = iter([0.0, 2.0, 4.0, 12.0, 20.0, 22.0])
    progress = Progress(120, lambda: next(seconds))
    for step in (1, 2, 6, 10):
        progress(step, 0.5, [1e-3, 1e-4, 1e-3])
    assert capsys.readouterr().out.splitlines() == [
        "step 1 of 120: loss 0.5000, rate 1.00e-03 and 1.00e-04, 0.50 steps/s, 4.0 minutes left",
        "step 6 of 120: loss 0.5000, rate 1.00e-03 and 1.00e-04, 0.50 steps/s, 3.8 minutes left",
    ]
    monkeypatch.setenv("RANK", "1")
    progress(120, 0.5, [1e-3])
    assert capsys.readouterr().out == ""


def test_lines_are_those_of_the_first_process(capsys):
    for is_first in (True, False):
        lines, state = Lines(), TrainerState(max_steps=4, is_world_process_zero=is_first)
        lines.on_train_begin(None, state, None)
        state.global_step = 2
        lines.on_log(None, state, None, logs={"loss": 0.5, "learning_rate": 1e-3})
        assert capsys.readouterr().out.startswith("step 2 of 4: loss 0.5000, rate 1.00e-03") == is_first


class ManyDevices(TrainingArguments):
    """Arguments on a machine with four devices."""

    @cached_property
    def _setup_devices(self):
        found = super()._setup_devices
        self._n_gpu = 4
        return found


def test_of_many_devices_a_process_uses_one(monkeypatch, tmp_path):
    assert ManyDevices(output_dir=str(tmp_path), use_cpu=True).n_gpu == 4
    monkeypatch.setattr(training, "TrainingArguments", ManyDevices)
    assert arguments_of(OcrSettings(), torch.device("cpu"), output_dir=str(tmp_path)).n_gpu == 1


def test_a_model_of_which_nothing_learns_is_refused(loaded, formulas):
    loaded.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing of the model learns: setup_peft_model"):
        setup_trainer(loaded.model, loaded.processor, convert_dataset_to_conversations(formulas))


@pytest.mark.parametrize("keeps_targets", [True, False])
def test_the_loss_is_that_of_the_model(loaded, formulas, place, keeps_targets):
    trainer = setup_trainer(loaded.model, loaded.processor, convert_dataset_to_conversations(formulas))
    trainer.keeps_targets = keeps_targets
    batch = Collator(loaded.processor)([convert_to_conversation(formulas[n]) for n in range(4)])
    ours, theirs = trainer.compute_loss(loaded.model, batch), loaded.model(**batch).loss
    torch.testing.assert_close(ours, theirs)
    assert trainer.compute_loss(loaded.model, batch, return_outputs=True)[1].logits.ndim == 3 - keeps_targets


def gradients(small_loaded, formulas, batch_size: int, accumulation: int) -> list[torch.Tensor]:
    """Gradients of the first step, over answers of different lengths."""
    model, found = attach(small_loaded.model), []
    trainer = setup_trainer(
        model, small_loaded.processor, convert_dataset_to_conversations(formulas), max_steps=1,
        optim="sgd", learning_rate=1.0, warmup_steps=0, max_grad_norm=0.0, weight_decay=0.0,
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, save_strategy="no",
    )  # fmt: skip
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    train_model(trainer)
    after = [p.detach() for p in model.parameters() if p.requires_grad]
    found += [old - new for old, new in zip(before, after, strict=True)]
    return found


def test_accumulation_does_not_change_a_step(small, formulas, place):
    def fresh():
        return load(small, bits=16, device="cpu")

    whole = gradients(fresh(), formulas, 8, 1)
    pieces = gradients(fresh(), formulas, 2, 4)
    assert max(g.abs().max() for g in whole) > 1e-4
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def adapters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def test_a_resumed_run_ends_where_an_unbroken_one_does(small, formulas, place):
    def trainer(output_dir):
        found = load(small, bits=16, device="cpu")
        data = convert_dataset_to_conversations(formulas)
        asked = dict(max_steps=4, save_steps=2, gradient_accumulation_steps=1, optim="adamw_torch")
        return setup_trainer(attach(found.model), found.processor, data, output_dir, **asked)

    whole, again = trainer("whole"), trainer("again")
    train_model(whole)
    train_model(again, resume_from_checkpoint="whole/checkpoint-2")
    assert again.state.global_step == 4
    expected, found = adapters(whole.model), adapters(again.model)
    assert any(p.abs().sum() > 0 for name, p in expected.items() if "lora_B" in name)
    for name, p in expected.items():
        torch.testing.assert_close(found[name], p, atol=1e-6, rtol=1e-5, msg=name)


def test_adapters_without_gradients_end_the_run(loaded, formulas, place):
    model = attach(loaded.model)
    visual = model.get_base_model().model.visual
    visual.register_forward_hook(lambda module, given, out: _detached(out))
    trainer = setup_trainer(
        model, loaded.processor, convert_dataset_to_conversations(formulas), max_steps=1, optim="sgd"
    )
    with pytest.raises(RuntimeError, match="30 adapter weights have no gradient, such as .*visual"):
        train_model(trainer)


def _detached(out):
    pooled = out.pooler_output
    out.pooler_output = tuple(t.detach() for t in pooled) if isinstance(pooled, tuple) else pooled.detach()
    return out


def test_adapters_learn_to_read_what_they_are_shown(loaded, place):
    """The short version of `quicksviewer finetune ocr`: six formulas, read again after eighty steps."""
    # A random model can be sure of nothing: its last norm is small, and adapters leave that alone.
    loaded.model.model.language_model.norm.weight.data.mul_(10)
    settings = OcrSettings(
        **dict(batch_size=6, gradient_accumulation_steps=1, max_steps=80, learning_rate=4e-3, warmup_steps=5),
        **dict(lr_scheduler_type="cosine", optim="adamw_torch", logging_steps=20, max_new_tokens=24),
    )
    data = FormulaData("train", 6, FormulaConfig(max_terms=1))
    with using(settings):
        before = evaluate(loaded.model, loaded.processor, data)
        model = setup_peft_model(loaded.model, targets=dict.fromkeys(PARTS, ()))
        trainer = setup_trainer(model, loaded.processor, Conversations(data, INSTRUCTION), save_strategy="no")
        stats = train_model(with_lines(trainer))
        after = evaluate(model, loaded.processor, data)
    assert not model.training
    assert after["cer"] <= min(1, before["cer"]) / 3, (before["cer"], after["cer"])
    shown = show_training_stats(stats)
    assert shown["seconds"] > 0 and shown["peak_percent"] == shown["training_gb"] == 0
