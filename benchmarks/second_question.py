"""A second question about the same video of 420 frames, against the first.

    python benchmarks/second_question.py [--repeats 5]

The first question decodes the video, sees it, cuts it and reads it; the second reads what is new. Its answer
is held first against that of a session that was told the conversation and remembers nothing, for several
questions. Timed are the seconds until the answer has ended, and until its first token; beside them the second
question when the session keeps the video's tokens but forgets what it has read. Prints one JSON with the
counts; the target is 5 at the lower end.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import ratio_row, seconds_of

from quicksviewer.model.builder import new_model
from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.session import ChatSession
from quicksviewer.synthetic.corpus import CorpusConfig, corpus_text
from quicksviewer.synthetic.tiny import make_language_model, make_tower
from quicksviewer.synthetic.video import write_video
from quicksviewer.synthetic.world import WorldConfig

FRAMES, SIDE = 420, 64
TARGET = 5.0
LM = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4)
TOWER = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4)
MM = {
    "cubing": {"frames_per_cube": 5},
    "resampler": {"queries": 16, "head_width": 32},
    "layout": {"time_digits": 3, "time_decimals": 0},
}
QUESTIONS = ("What happens when?", "Which is first?", "Which is last?")
LOUDER = 6.0
"""A fresh model says the same to everything; with larger matrices it does not."""


def make(folder: Path):
    """A model that answers differently to different questions, and a video of FRAMES seconds."""
    texts = corpus_text(WorldConfig(), CorpusConfig(), count=60)
    make_language_model(folder / "lm", "qwen2", texts, **LM)
    make_tower(folder / "tower", "siglip", **TOWER)
    torch.manual_seed(0)
    paths = str(folder / "lm"), str(folder / "tower")
    loaded = new_model(*paths, MM, "plain", {"max_frames": FRAMES}, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if name.startswith("model.") and weight.ndim > 1:
                weight.mul_(LOUDER)
    loaded.model.eval()
    scenes = np.random.default_rng(0).integers(0, 255, (FRAMES // 6, 1, 1, 1, 3), dtype=np.uint8)
    frames = np.broadcast_to(scenes, (FRAMES // 6, 6, SIDE, SIDE, 3)).reshape(FRAMES, SIDE, SIDE, 3)
    write_video(folder / "long.mp4", frames, fps=1)
    return loaded, str(folder / "long.mp4")


def check(loaded, video: str, decoding: Decoding) -> dict:
    """Answers with a memory and without one must be equal. Counts of what was seen and read."""
    session, counts = ChatSession(loaded, decoding), []
    session.see(video)
    for question in QUESTIONS:
        before = session.dialogue
        answer = session.ask(question)
        other = ChatSession(loaded, decoding)
        other.see(video)
        other.dialogue = before if before.turns else other.dialogue
        if (expected := other.ask(question)) != answer:
            raise SystemExit(f"{question}: {answer!r} with a memory, {expected!r} without")
        times = session.times
        counts.append({"prompt_tokens": times.prompt_tokens, "read": times.prompt_tokens - times.kept_tokens})
    if session.encoded_videos != 1 or len(session.media[0].times) != FRAMES:
        raise SystemExit(f"{session.encoded_videos} encodings of {len(session.media[0].times)} frames")
    answers = [turn.text for turn in session.dialogue.turns if turn.role == "assistant"]
    if len(set(answers)) != len(QUESTIONS):
        raise SystemExit(f"the model says the same to all: {answers}")
    return {"frames": FRAMES, "cubes": session.encoded.cuts.cubes[0], "questions": counts}


def one_round(loaded, video: str, decoding: Decoding) -> dict[str, float]:
    """Seconds of a first and a second question, and of a second one that is read from its beginning."""
    session = ChatSession(loaded, decoding)

    def first():
        session.see(video)
        session.ask(QUESTIONS[0])

    row = {"first": seconds_of(first)}
    row["first_token"] = sum(session.times.stages.values())
    before = session.dialogue
    row["second"] = seconds_of(lambda: session.ask(QUESTIONS[1]))
    row["second_token"] = session.times.stages["first token"]
    session.dialogue, session._memory = before, None
    row["second_read_anew"] = seconds_of(lambda: session.ask(QUESTIONS[1]))
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoding = Decoding(max_new_tokens=args.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        loaded, video = make(Path(folder))
        counts = check(loaded, video, decoding)
        rounds = [one_round(loaded, video, decoding) for _ in range(args.repeats)]
    side = {name: [row[name] for row in rounds] for name in rounds[0]}
    result = {
        "benchmark": "second_question",
        "answers_equal": True,
        "counts": counts,
        "whole_answer": ratio_row(side["first"], side["second"], TARGET),
        "first_token": ratio_row(side["first_token"], side["second_token"], TARGET),
        "reading_anew_over_memory": ratio_row(side["second_read_anew"], side["second"], 1.0),
    }
    print(json.dumps(result, indent=2))
    return 0 if result["whole_answer"]["pass"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
