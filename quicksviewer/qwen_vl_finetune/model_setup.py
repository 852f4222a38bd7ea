"""Models with their processors: loaded, given adapters, saved, merged.

"tokenizer" is the processor, as in code for unsloth: `tokenizer.tokenizer` has the words,
`tokenizer.image_processor` the pictures.
"""

import os
from pathlib import Path

from quicksviewer.qwen_vl_finetune.backends import backend
from quicksviewer.qwen_vl_finetune.lora import LoraSettings
from quicksviewer.qwen_vl_finetune.settings import current
from quicksviewer.qwen_vl_finetune.utils import get_gpu_memory_info
from quicksviewer.utils.config import build, to_plain
from quicksviewer.utils.modules import count_parameters

fourbit_models = [
    "unsloth/Qwen2.5-VL-3B-Instruct-bnb-4bit",
    "unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit",
    "unsloth/Qwen2.5-VL-32B-Instruct-bnb-4bit",
    "unsloth/Qwen2.5-VL-72B-Instruct-bnb-4bit",
    "unsloth/Qwen2-VL-2B-Instruct-bnb-4bit",
    "unsloth/Qwen2-VL-7B-Instruct-bnb-4bit",
    "unsloth/Qwen2-VL-72B-Instruct-bnb-4bit",
    "unsloth/Llama-3.2-11B-Vision-Instruct-bnb-4bit",
    "unsloth/Llama-3.2-11B-Vision-bnb-4bit",
    "unsloth/Llama-3.2-90B-Vision-Instruct-bnb-4bit",
    "unsloth/Llama-3.2-90B-Vision-bnb-4bit",
    "unsloth/Pixtral-12B-2409",
    "unsloth/Pixtral-12B-Base-2409",
    "unsloth/llava-v1.6-mistral-7b-hf-bnb-4bit",
    "unsloth/llava-1.5-7b-hf-bnb-4bit",
]
"""Names on the hub that are meant for 4 bits. The portable backend adapts those of Qwen2.5-VL, whose parts it
knows; the others need unsloth."""


def load_model_and_tokenizer(
    model_name: str | os.PathLike | None = None, load_in_4bit: bool | None = None, device=None
):
    """(model in eval mode, processor) of a folder, an adapter's folder or a name on the hub.

    load_in_4bit: None takes 4 bits where they run, else all, with a warning that says why; True insists.
    What is None is the settings' (settings.py).
    """
    settings = current()
    name = os.fspath(model_name or settings.model_name)
    wanted = settings.load_in_4bit if load_in_4bit is None else load_in_4bit
    loaded = backend(settings.backend).load(name, wanted, device or settings.device)
    return loaded.model, loaded.processor


def setup_peft_model(model, **overrides):
    """The model with fresh LoRA adapters, which are all that learns; says how many numbers that are.

    By default rank 16 on every linear layer of both towers. `overrides`: the
    fields of LoraSettings, such as r=8 or targets={"lm": ("q_proj", "v_proj")}.
    """
    settings = current()
    plain = to_plain(settings.lora) | overrides
    adapted = backend(settings.backend).attach(model, build(LoraSettings, plain, "setup_peft_model"))
    learning, whole = count_parameters(adapted, trainable_only=True), count_parameters(adapted)
    print(f"{learning:,} of {whole:,} numbers learn ({learning / whole:.2%})")
    return adapted


def load_lora_model(model_path: str | os.PathLike, load_in_4bit: bool | None = True, device=None):
    """(model, processor) of an adapter's folder: the base that it names, with the adapter, in eval mode.

    FileNotFoundError where the folder holds no adapter. load_in_4bit True means 4 bits where they run.
    """
    from quicksviewer.qwen_vl_finetune.load import base_of

    base_of(model_path)
    return load_model_and_tokenizer(model_path, False if load_in_4bit is False else None, device)


def save_model(model, tokenizer, save_path: str | os.PathLike | None = None) -> Path:
    """Write adapters and processor, so that load_lora_model finds both; gives the folder."""
    folder = Path(save_path or current().adapter_dir)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_merged_model(
    model,
    tokenizer,
    save_path: str | os.PathLike | None = None,
    dtype: str | None = "bfloat16",
    base: str | os.PathLike | None = None,
) -> Path:
    """Write a model of its own, adapters added to the weights, and its processor; gives the folder.

    The sum is made over the base's files with all bits, not over rounded ones. base: where those are, if the
    model came from a checkpoint that is stored in 4 bits; ValueError without. dtype: of what is written,
    None for that of the base. The model given stays as it is.
    """
    settings = current()
    folder = Path(save_path or settings.merged_dir)
    backend(settings.backend).write_merged(model, tokenizer, folder, dtype, base)
    return folder


def push_to_hub_merged(model, tokenizer, hub_path: str, token: str) -> str:
    """Upload the merged model to the hub as `hub_path` ("owner/name") and give its address. The token goes to
    the hub alone; no error message and no file has it."""
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        folder = save_merged_model(model, tokenizer, Path(scratch) / "merged")
        hub = HfApi(token=token)
        hub.create_repo(hub_path, exist_ok=True)
        return str(hub.upload_folder(repo_id=hub_path, folder_path=folder))


def show_memory_stats() -> tuple[float, float]:
    """Print the GPU, its memory and what is reserved; (GB reserved at most until now, GB in all), zeros
    without CUDA."""
    found = get_gpu_memory_info()
    if found is None:
        print("no GPU: memory is not counted")
        return 0.0, 0.0
    print(f"{found['gpu_name']}: {found['max_memory']} of {found['total_memory']} GB reserved")
    return found["max_memory"], found["total_memory"]
