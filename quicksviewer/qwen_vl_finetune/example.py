"""The package used in its three ways, as a script: `--mode training`, `inference` or `custom`.

QWEN_VL_FINETUNE_CONFIG=my.yaml python qwen_vl_finetune_refactored.py --mode training
"""

import argparse
import sys

import quicksviewer.qwen_vl_finetune as tools


def train(model_path: str | None) -> None:
    """Everything, and adapters where `model_path` or the settings say."""
    tools.main_training_pipeline(model_path)


def infer(model_path: str | None) -> None:
    """One formula, read with the adapters of `model_path` or by the base model."""
    tools.main_inference_pipeline(model_path)


def custom(model_path: str | None) -> None:
    """The steps one by one."""
    model, tokenizer = tools.load_model_and_tokenizer()
    model = tools.setup_peft_model(model)
    dataset = tools.load_latex_dataset()
    trainer = tools.setup_trainer(model, tokenizer, tools.convert_dataset_to_conversations(dataset))
    tools.show_training_stats(tools.train_model(trainer))
    tools.run_inference(model, tokenizer, dataset[0]["image"])
    print(f"adapters: {tools.save_model(model, tokenizer, model_path)}")


MODES = {"training": train, "inference": infer, "custom": custom}


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 wrong usage or settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=MODES, default="training")
    parser.add_argument("--model-path", help="folder of adapters: read in inference, else written")
    args = parser.parse_args(argv)
    try:
        MODES[args.mode](args.model_path)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
