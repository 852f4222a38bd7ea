"""What all multiple-choice benchmarks share: the prompt, the metrics, the score."""

from collections.abc import Sequence

from quicksviewer.eval.letters import lenient, strict
from quicksviewer.eval.task import Item, Score

PROMPT = "{subtitles}{question}\n{options}\nAnswer with the letter of the right option and nothing else."
METRICS = {"accuracy": 1.0, "strict": 1.0}
"""accuracy: the lenient reading is right; strict: the answer is the right letter and nothing else."""
MAX_NEW_TOKENS = 16


def score_letter(item: Item, answers: Sequence[str]) -> Score:
    """Both readings against the right letter. What cannot be read is wrong in both."""
    read = lenient(answers[0], item.options)
    alone = strict(answers[0], len(item.options))
    return Score({"accuracy": float(read == item.answer), "strict": float(alone == item.answer)}, read)
