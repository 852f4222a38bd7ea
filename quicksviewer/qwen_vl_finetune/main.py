"""The two ways from end to end: fine-tune a model on formulas, and read one formula."""

import os

from quicksviewer.qwen_vl_finetune.data_processing import (
    convert_dataset_to_conversations,
    display_dataset_sample,
    load_latex_dataset,
    render_latex,
    show_conversation_example,
)
from quicksviewer.qwen_vl_finetune.inference import run_inference
from quicksviewer.qwen_vl_finetune.model_setup import (
    load_lora_model,
    load_model_and_tokenizer,
    save_model,
    setup_peft_model,
    show_memory_stats,
)
from quicksviewer.qwen_vl_finetune.training import setup_trainer, show_training_stats, train_model


def main_training_pipeline(save_path: str | os.PathLike | None = None):
    """Load, adapt, show the data, read one formula, train, save, read it again: (model, processor, rows).

    What is read and trained is the settings' (settings.py). The adapters go to `save_path`, or where the
    settings say.
    """
    model, tokenizer = load_model_and_tokenizer()
    model = setup_peft_model(model)
    dataset = load_latex_dataset()
    sample = display_dataset_sample(dataset)
    render_latex(sample["text"])
    converted = convert_dataset_to_conversations(dataset)
    show_conversation_example(converted)
    print("before training:")
    run_inference(model, tokenizer, sample["image"])
    start, most = show_memory_stats()
    trainer = setup_trainer(model, tokenizer, converted)
    stats = train_model(trainer)
    show_training_stats(stats, start, most)
    print("after training:")
    run_inference(model, tokenizer, sample["image"])
    print(f"adapters: {save_model(model, tokenizer, save_path)}")
    return model, tokenizer, dataset


def main_inference_pipeline(model_path: str | os.PathLike | None = None):
    """Read the first formula of the data with the adapters of `model_path`, or without one with the base
    model: (model, processor)."""
    model, tokenizer = load_lora_model(model_path) if model_path else load_model_and_tokenizer()
    sample = load_latex_dataset(max_samples=1)[0]
    print(f"LaTeX: {sample['text']}")
    run_inference(model, tokenizer, sample["image"])
    return model, tokenizer
