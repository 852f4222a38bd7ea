"""Our models as a model of lmms-eval, which brings some hundred benchmarks of its own.

    python -m lmms_eval --model quicksviewer --model_args pretrained=DIR,max_frames=128 --tasks videomme

lmms-eval finds `manifest` through the entry point group `lmms_eval.models`. It lives in an environment of
its own (scripts/lmms_eval_env.sh), and nothing else imports this file. Questions about a video are answered
by the loop of `quicksviewer eval`, so that both give the same answers.
"""

import importlib
import logging
import os
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from quicksviewer.conversation import Turn
from quicksviewer.eval.answering import Answerer, make_batches
from quicksviewer.eval.task import Benchmark, Item, Score
from quicksviewer.utils.generation import GREEDY

logger = logging.getLogger("quicksviewer.lmms_eval")
NAME, CLASS = "quicksviewer", "Quicksviewer"
KNOWN = ("until", "max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")
"""Settings of a task that we know; others are refused."""
DEFAULT_NEW_TOKENS = 128


def manifest():
    """What the entry point gives to lmms-eval: the model's name and where its class lies."""
    registry = _lmms_eval("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.{CLASS}")


def __getattr__(name: str) -> type:
    if name != CLASS:
        raise AttributeError(f"module {__name__} has no {name!r}")
    return model_class()


def _lmms_eval(module: str):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = "lmms-eval is not installed; bash scripts/lmms_eval_env.sh makes an environment that has it"
        raise ModuleNotFoundError(hint, name=error.name) from error


@cache
def model_class() -> type:
    """The class that lmms-eval asks for, made when it is there to inherit from."""
    base = _lmms_eval("lmms_eval.api.model").lmms

    class Quicksviewer(Answers, base):
        """A checkpoint of this project for tasks of lmms-eval that generate text."""

        def __init__(self, pretrained: str, device: str | None = None, batch_size: int = 1, **settings):
            base.__init__(self)
            Answers.__init__(self, pretrained, device, batch_size, **settings)

    return Quicksviewer


class Answers:
    """Answers to requests. `settings`: fps, max_frames, decoder and model_base, as in `quicksviewer eval`."""

    is_simple = True

    def __init__(self, pretrained: str, device: str | None, batch_size: int | str, **settings):
        from quicksviewer.model.builder import load_pretrained_model

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("one process only; `quicksviewer eval` shares its work among processes")
        base = settings.pop("model_base", None)
        media = {name: settings.pop(name) for name in ("fps", "max_frames", "decoder") if name in settings}
        if strangers := {k: v for k, v in settings.items() if v is not None and k != "max_batch_size"}:
            raise ValueError(
                f"unknown model_args {strangers}; known are fps, max_frames, decoder, model_base"
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_pretrained_model(pretrained, base, device)
        self.loaded = replace(loaded, processor=loaded.processor.with_media(**media))
        self.batch_size = int(batch_size)

    def generate_until(self, requests) -> list[str]:
        """Greedy answers, in the order of the requests."""
        asked = [self._request(request) for request in requests]
        answers: dict[int, str] = {}
        for tokens in sorted({settings["max_new_tokens"] for _, _, settings in asked}):
            same = {n: one for n, one in enumerate(asked) if one[2]["max_new_tokens"] == tokens}
            videos = {n: one for n, one in same.items() if isinstance(one[1], str)}
            answers |= self._about_videos(videos, tokens)
            answers |= {n: self._about_images(*one[:2], tokens) for n, one in same.items() if n not in videos}
        return [cut(answers[n], settings["until"]) for n, (_, _, settings) in enumerate(asked)]

    def loglikelihood(self, requests):
        raise NotImplementedError("quicksviewer answers tasks that generate text, not log-likelihoods")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("quicksviewer answers tasks of one round")

    def _request(self, request) -> tuple[str, str | list, dict]:
        """Text, the path of a video or a list of images, settings. ValueError for what is neither."""
        text, settings, visual_of, number, task, split = request.args
        visuals = visual_of(self.task_dict[task][split][number]) or []
        if len(visuals) == 1 and isinstance(visuals[0], (str, os.PathLike)):
            visuals = os.fspath(visuals[0])
        elif any(isinstance(visual, (str, os.PathLike)) for visual in visuals):
            raise ValueError(f"{task}: one video, or images; got {len(visuals)} media with paths among them")
        return text, visuals, generation(settings)

    def _about_videos(self, asked: dict[int, tuple], tokens: int) -> dict[int, str]:
        """Number of a request -> answer. A clip that cannot be read has an empty one, and is named."""
        items = [
            Item(uid=str(n), video=video, questions=(text,), answer="", kind="", where=f"request {n}")
            for n, (text, video, _) in asked.items()
        ]
        task = Benchmark(
            samples=tuple, prompt="{question}", metrics={}, max_new_tokens=tokens, score=_unscored
        )
        answerer, found = Answerer(loaded=self.loaded, task=task, prompt=task.prompt), {}
        for records, _ in answerer.answer(make_batches(items, self.batch_size)):
            for record in records:
                if record["error"]:
                    logger.warning("%s", record["error"])
                found[int(record["uid"])] = record["answers"][0] if record["answers"] else ""
        return found

    @torch.no_grad()
    def _about_images(self, text: str, images: list[Any], tokens: int) -> str:
        processor, model = self.loaded.processor, self.loaded.model
        media = [processor.load_image(image) for image in images]
        row = processor.encode_turns([Turn("user", "<image>\n" * len(media) + text)], media, generation=True)
        batch = processor.batch([row]).to(model.device)
        stops = dict(eos_token_id=processor.stop_ids, pad_token_id=processor.pad_id)
        out = model.generate(**batch, max_new_tokens=tokens, **stops, **GREEDY)
        new = out[0, batch["input_ids"].shape[1] :]
        return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def _unscored(item: Item, answers) -> Score:
    """lmms-eval scores by itself."""
    return Score({}, answers[0])


def generation(settings: dict) -> dict:
    """What a task wishes: `until`, a list of texts that end an answer, and max_new_tokens. ValueError for
    sampling, beams or settings that nobody here knows."""
    if (
        settings.get("do_sample")
        or (settings.get("temperature") or 0) > 0
        or settings.get("num_beams", 1) > 1
    ):
        raise ValueError(f"answers are greedy here, the task wants {settings}")
    if strangers := sorted(set(settings) - set(KNOWN)):
        raise ValueError(f"the task has generation_kwargs {strangers}; known are {', '.join(KNOWN)}")
    until = settings.get("until") or []
    return {
        "until": [until] if isinstance(until, str) else list(until),
        "max_new_tokens": int(settings.get("max_new_tokens", DEFAULT_NEW_TOKENS)),
    }


def cut(answer: str, until: list[str]) -> str:
    """The answer up to the first of these texts."""
    ends = [place for stop in until if stop and (place := answer.find(stop)) >= 0]
    return answer[: min(ends, default=len(answer))].strip()
