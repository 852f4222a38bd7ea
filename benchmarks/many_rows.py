"""A file of very many rows for benchmarks of the data plane: as JSONL, and the same rows as one JSON list."""

import json
import os
from pathlib import Path

WORDS = ("a", "red", "circle", "moves", "left", "then", "a", "blue", "square", "stands", "still")


def row(number: int, video: str) -> dict:
    """A conversation about a video, of the usual shape and some 400 bytes."""
    said = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 13))
    turns = [
        {"from": "human", "value": "<video>\nWhat happens in it, and when?"},
        {"from": "gpt", "value": said},
    ]
    return {"uid": f"set_{number:08d}", "data_type": "conversations", "video": video, "conversations": turns}


def write_rows(folder: Path, count: int, videos: list[str]) -> tuple[Path, Path]:
    """rows.jsonl and rows.json under a folder, made once; changed long ago, so that their index is kept."""
    lines, whole = folder / f"rows-{count}.jsonl", folder / f"rows-{count}.json"
    if not whole.exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts = [json.dumps(row(number, videos[number % len(videos)])) for number in range(count)]
        lines.write_text("\n".join(texts) + "\n")
        whole.write_text("[" + ",\n".join(texts) + "]")
        os.utime(lines, (1e9, 1e9))
    return lines, whole
