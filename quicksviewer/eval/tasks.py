"""The table of benchmarks. A row is imported when it is asked for."""

from quicksviewer.eval.task import Benchmark
from quicksviewer.utils.registry import load_target, lookup

_HOME = "quicksviewer.eval"
TASKS = {
    "world": f"{_HOME}.eval_world:WORLD",
    "videomme": f"{_HOME}.eval_video_mme:PLAIN",
    "videomme_subtitles": f"{_HOME}.eval_video_mme:WITH_SUBTITLES",
    "mvbench": f"{_HOME}.eval_mvbench:MVBENCH",
    "mlvu": f"{_HOME}.eval_mlvu:MLVU",
    "nextqa": f"{_HOME}.eval_nextqa:CHOICE",
    "nextqa_open": f"{_HOME}.eval_nextqa:OPEN",
    "activitynetqa": f"{_HOME}.eval_activitynet_qa:ACTIVITYNET_QA",
    "videochatgpt_generic": f"{_HOME}.eval_video_chatgpt:GENERIC",
    "videochatgpt_temporal": f"{_HOME}.eval_video_chatgpt:TEMPORAL",
    "videochatgpt_consistency": f"{_HOME}.eval_video_chatgpt:CONSISTENCY",
    "longvideobench": f"{_HOME}.eval_longvideobench:PLAIN",
    "longvideobench_subtitles": f"{_HOME}.eval_longvideobench:WITH_SUBTITLES",
}
"""Name -> "module:Benchmark"."""


def task_named(name: str) -> Benchmark:
    """A row of TASKS. ValueError for an unknown name."""
    return load_target(lookup(TASKS, name, "task"))
