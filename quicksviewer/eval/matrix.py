"""The same task with several numbers of frames, side by side."""

import json
from pathlib import Path

from quicksviewer.eval.evaluation import Evaluation, write_text
from quicksviewer.eval.report import report_matrix

SHARED = ("task", "model", "weights_sha256", "metric")


def write_matrix(runs: list[Evaluation], path: Path) -> bool:
    """Write and show the summaries of all runs, if their results are there; else another process will."""
    results = {}
    for run in runs:
        if not run.out.is_file():
            return False
        result = json.loads(run.out.read_text(encoding="utf-8"))
        if any(result.get(key) != value for key, value in run.settings.items()):
            return False
        results[str(run.settings["media"]["max_frames"])] = (run, result)
    first = next(iter(results.values()))[1]
    frames = {
        budget: {
            "result": run.out.name,
            "fps": result["media"]["fps"],
            "frame_policies": result["frame_policies"],
            "macro": result["macro"],
            "by_kind": result["by_kind"],
        }
        for budget, (run, result) in results.items()
    }
    matrix = {key: first[key] for key in SHARED} | {"frames": frames}
    write_text(path, json.dumps(matrix, indent=1, ensure_ascii=False) + "\n")
    report_matrix(matrix, path)
    return True
