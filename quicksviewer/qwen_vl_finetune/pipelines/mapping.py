"""Task 2's `map`: annotations become conversations, each picture opened once to be sure of it.

Seed 001's template is cut where it says {label_text}: what stands before is asked, the word is what is
learned. So no prompt can hold the answer, whatever the template is.

    FINAL/rows.jsonl      a conversation a line: image, label, messages (as seed 000's records), mask
    FINAL/dataset.json    how it was made
    FINAL/manifest.json   sizes and digests: a folder without it is not whole
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from quicksviewer.qwen_vl_finetune.pipelines.annotations import Annotation, read_annotations, rooted_file
from quicksviewer.qwen_vl_finetune.pipelines.language import Prompts
from quicksviewer.qwen_vl_finetune.pipelines.settings import LmMap, MappedDataset
from quicksviewer.qwen_vl_finetune.pipelines.tower import load_processor
from quicksviewer.qwen_vl_finetune.pipelines.weights import whole_folder
from quicksviewer.utils.config import save_json, to_plain
from quicksviewer.utils.image import image_size, load_image
from quicksviewer.utils.manifest import check
from quicksviewer.utils.media import MediaError
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

LABEL = "{label_text}"
ROWS, ABOUT = "rows.jsonl", "dataset.json"
SHOWN = 3


def split_template(template: str) -> str:
    """The question of a template. ValueError where text follows the answer, or there is no question."""
    question, mark, rest = template.partition(LABEL)
    if rest.strip(" \n.") or LABEL in rest:
        raise ValueError(
            f"prompt_template must end with {LABEL}, which is what is learned; behind it stands {rest!r}"
        )
    if not question.strip():
        raise ValueError(f"prompt_template asks nothing before {LABEL}: {template!r}")
    return question.strip()


def conversation(row: Annotation, question: str, answer: str, data_root: Path) -> dict[str, Any]:
    """A picture as a record of seed 000: what is asked, and what is learned."""
    return {
        "image": row.name,
        "label": row.label,
        "mask": None if row.mask is None else os.path.relpath(row.mask, data_root),
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


def map_all(config: LmMap, run_id: str) -> dict[str, Any]:
    """Every data set of the configuration; gives the number of rows of each.

    The base model's tokenizer must tell the two answers apart and its template take the question.
    """
    question = split_template(config.prompt_template)
    files = [config.data / dataset.annotation_file for dataset in config.datasets]
    found = [read_annotations(file, config.data, config.dataset_limit) for file in files]
    prompts = Prompts(load_processor(config.model(config.base_model_path)))
    prompts.render(question)
    prompts.words(config.fake_token, config.real_token)
    counts = {}
    for dataset, annotations in zip(config.datasets, found, strict=True):
        counts[dataset.name] = _map(config, dataset, annotations, question, run_id)
        logger.info("%s: %d conversations", dataset.name, counts[dataset.name])
    return counts


def _map(config: LmMap, dataset: MappedDataset, annotations, question: str, run_id: str) -> int:
    final = config.output(dataset.final_dataset_path)
    parts = config.output(dataset.batch_output_dir) if dataset.batch_output_dir else final.parent / "parts"
    words = (config.real_token, config.fake_token)
    size = config.map_batch_size
    jobs = [annotations[start : start + size] for start in range(0, len(annotations), size)]
    parts.mkdir(parents=True, exist_ok=True)
    written = []
    for place, rows in enumerate(jobs):
        lines = [json.dumps(conversation(r, question, words[r.label], config.data)) for r in rows]
        written.append(_part(parts, dataset.name, place, lines, rows, config))
    about = to_plain(config) | {"name": dataset.name, "question": question, "run_id": run_id}
    with whole_folder(final) as aside:
        (aside / ROWS).write_text("".join(path.read_text() for path in written), encoding="utf-8")
        save_json(aside / ABOUT, about | {"rows": len(annotations)})
    for path in written:
        path.unlink()
    if not any(parts.iterdir()):
        parts.rmdir()
    return len(annotations)


def _part(folder: Path, name: str, place: int, lines: list[str], rows, config: LmMap) -> Path:
    """The file of one part; one that an earlier run has finished with the same rows is kept."""
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = folder / f"{name}-{place:05d}-{digest}.jsonl"
    if path.is_file():
        return path
    if wrong := [fault for fault in _faults(rows, config) if fault]:
        raise ValueError(f"{name}: {len(wrong)} pictures cannot be used: {'; '.join(wrong[:SHOWN])}")
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)
    return path


def _faults(rows: Sequence[Annotation], config: LmMap) -> Iterator[str]:
    work = config.map_kwargs
    pool = ProcessPoolExecutor(work.num_proc, get_context("spawn")) if work.num_proc > 1 else nullcontext()
    with pool as workers:
        run = map if workers is None else workers.map
        sizes = {} if workers is None else {"chunksize": work.batch_size}
        yield from run(_fault, rows, **sizes)


def _fault(row: Annotation) -> str:
    """What is wrong with a picture or its mask; nothing if both can be read."""
    try:
        load_image(row.image)
        if row.mask is not None:
            image_size(row.mask)
    except MediaError as error:
        return str(error)
    return ""


def read_mapped(folder: Path, data_root: Path) -> list[tuple[Annotation, str, str]]:
    """Pictures with question and answer. ValueError for a folder that is not whole or has other records."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no mapped data set {folder}: run map first")
    check(folder)
    found = []
    for number, line in enumerate((folder / ROWS).read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        try:
            image = rooted_file(data_root, row["image"])
            mask = rooted_file(data_root, row["mask"]) if row["mask"] else None
        except ValueError as error:
            raise ValueError(f"{folder / ROWS}, line {number}: {error}") from error
        if image is None:
            raise ValueError(f"{folder / ROWS}, line {number}: no picture {row['image']!r} in {data_root}")
        picture = Annotation(name=row["image"], image=image, label=row["label"], mask=mask)
        user, assistant = row["messages"]
        found.append((picture, user["content"][1]["text"], assistant["content"][0]["text"]))
    return found
