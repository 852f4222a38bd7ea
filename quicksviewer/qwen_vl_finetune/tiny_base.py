"""A tiny Qwen2.5-VL that reads plain text and knows LaTeX as words: the base of the embedded formulas.

Random weights, all of which are trained in turn on pictures of letters, digits and signs, and on repeating
LaTeX that stands in the prompt, without a picture. That is what a published model brings to formulas, in
small. It has never seen a picture of a formula.

    make_base("output/tiny_qwen", BaseConfig())
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from quicksviewer.qwen_vl_finetune.load import load
from quicksviewer.qwen_vl_finetune.prompts import conversation
from quicksviewer.synthetic.formulas import CELL, COMMANDS, TEXT_LETTERS, FormulaConfig, FormulaData
from quicksviewer.utils.registry import load_target

INSTRUCTION = "Write the text of this image."
REPEAT = "Repeat: "
MAKER = "quicksviewer.synthetic.tiny_vlm:make_vlm"
CELLS = (1, 32)
"""Fewest and most cells of a picture."""
STAMP = "tiny_base.json"
PICTURES = 7
"""Lessons about pictures for each about LaTeX."""


def _text_shape(width: int) -> dict:
    half = width // 4 // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    return dict(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.05,
        rope_parameters=rope,
    )


TOWER = dict(
    depth=3,
    hidden_size=96,
    intermediate_size=256,
    num_heads=4,
    fullatt_block_indexes=[1, 2],
    window_size=112,
    initializer_range=0.15,
)


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The model and how long it reads plain text before it is a base."""

    tokenizer: str = "learned"
    """A row of tiny_vlm's QWEN_TOKENIZERS: some hundred tokens, or Qwen's own 151,665, which cost seven times
    the time."""
    width: int = 64
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 2e-3
    texts: int = 4000
    seed: int = 0
    pictures: FormulaConfig = field(default_factory=lambda: FormulaConfig(kind="text"))

    def __post_init__(self):
        if self.steps < 0 or self.width % 32:
            raise ValueError(f"steps must not be negative and width a multiple of 32, got {self}")


def make_base(folder: str | Path, config: BaseConfig | None = None) -> Path:
    """The checkpoint folder of a base, made unless one of the same settings lies there."""
    config, folder = config or BaseConfig(), Path(folder)
    stamp = folder / STAMP
    wanted = json.dumps({**asdict(config), "tower": TOWER, "lessons": PICTURES}, indent=1)
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    data = FormulaData("train", config.texts, config.pictures, config.seed, repeats=True)
    # Letters and signs stay tokens of their own. After a sign, Qwen parts a command from its backslash.
    words = [*COMMANDS, *(command[1:] for command in COMMANDS), *TEXT_LETTERS, INSTRUCTION, REPEAT]
    sides = tuple(CELL * CELL * cells for cells in CELLS)
    load_target(MAKER)(
        folder,
        "qwen2_5_vl",
        words,
        config.seed,
        tokenizer=config.tokenizer,
        text=_text_shape(config.width),
        vision=TOWER,
        pixels=sides,
    )
    if config.steps:
        _warm_up(folder, data, config)
    stamp.write_text(wanted)
    return folder


class Lessons(Sequence):
    """Conversations in turn: PICTURES times a picture of plain text and what it says, then LaTeX and the same
    again.

    Repeating is learned in some hundred steps. Looking is not: with every second lesson of each, two bases of
    three were still blind at the end.
    """

    def __init__(self, pictures: FormulaData, latex: list[str]):
        self.pictures, self.latex = pictures, latex

    def __len__(self) -> int:
        return (PICTURES + 1) * len(self.latex)

    def __getitem__(self, place: int) -> dict:
        number, turn = divmod(range(len(self))[place], PICTURES + 1)
        if turn == PICTURES:
            asked = [{"type": "text", "text": REPEAT + self.latex[number]}]
            said = [{"type": "text", "text": self.latex[number]}]
            return {"messages": [dict(role="user", content=asked), dict(role="assistant", content=said)]}
        row = self.pictures[(PICTURES * number + turn) % len(self.pictures)]
        return conversation(row["image"], row["text"], INSTRUCTION)


def _warm_up(folder: Path, data: FormulaData, config: BaseConfig) -> None:
    from quicksviewer.qwen_vl_finetune.training import setup_trainer, with_lines

    loaded = load(folder, bits=16, device="cpu")
    trainer = setup_trainer(
        loaded.model,
        loaded.processor,
        Lessons(data, FormulaData("train", config.texts, seed=config.seed).texts),
        output_dir=str(folder / "warm_up"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        max_steps=config.steps,
        warmup_steps=min(100, config.steps // 10),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        logging_steps=max(1, config.steps // 20),
        save_strategy="no",
        seed=config.seed,
    )
    loaded.model.train()
    with_lines(trainer).train()
    torch.manual_seed(config.seed)
    loaded.model.eval().save_pretrained(folder)
    shutil.rmtree(folder / "warm_up", ignore_errors=True)
