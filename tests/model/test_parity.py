"""Cubing, resampler and thumbnail against numbers of the published modules, in float32 on random weights.

A file holds features of videos and of images between them, weights by their published names, the tokens that
come of them, gate logits, a loss and its gradients.
"""

import json
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from quicksviewer.model.config import CubingConfig, ResamplerConfig, ThumbnailConfig
from quicksviewer.model.multimodal_cubing import Thumbnail, build_cubing, pool_frames
from quicksviewer.model.multimodal_resampler import build_resampler
from quicksviewer.model.published import rename_published

FILES = sorted((Path(__file__).parents[1] / "data" / "parity").glob("*.safetensors"))


class Case:
    """One parity file: tensors, numbers, and our modules with its weights."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.meta = {name: json.loads(value) for name, value in meta.items()}
        self.frames, self.is_video = self._media()
        self.model = self._model()
        weights = {
            rename_published(k): v for k, v in self.tensors.items() if k.startswith(("cubing", "resampler"))
        }
        self.model.load_state_dict(weights)

    def _media(self):
        frames, is_video = [], []
        images = [1] * self.meta["images_between"]
        for start, end in self.meta["videos"]:
            frames += [*images, end - start]
            is_video += [*(False for _ in images), True]
        return [*frames, *images], [*is_video, *(False for _ in images)]

    def _model(self):
        meta = self.meta
        vision, lm = meta["vision_dim"], meta["lm_dim"]
        cubing = CubingConfig(
            energy_features=False,
            alpha=meta["alpha"],
            tau=meta["temperature"],
            frames_per_cube=meta["frames_per_cube"],
        )
        resampler = ResamplerConfig(
            queries=meta["queries"], head_width=lm // meta["heads"], time_unit="frames"
        )
        tower = SimpleNamespace(hidden_size=vision, num_patches=meta["grid"] ** 2)
        model = nn.Module()
        model.cubing = build_cubing(cubing, vision)
        model.vision_resampler = build_resampler(resampler, tower, lm)
        model.thumbnail = Thumbnail(ThumbnailConfig(pooling="runs"), vision, lm, meta["queries"])
        return model

    def run(self, features):
        """Cuts, tokens in the file's order, and the loss."""
        model = self.model
        cuts = model.cubing(pool_frames(features), self.frames, self.is_video)
        times = torch.cat([torch.arange(n).float() for n in self.frames])
        cubes = model.vision_resampler(features, cuts.cube_of_frame, sum(cuts.cubes), times)
        thumbnails = iter(model.thumbnail(features, cuts.mask, self.frames, self.is_video))
        ends = list(accumulate(cuts.cubes))
        parts = []
        for start, end, video in zip([0, *ends], ends, self.is_video, strict=False):
            parts += [next(thumbnails)[None]] if video else []
            parts.append(cubes[start:end])
        tokens = torch.cat(parts)
        norm = cuts.gate_logits.norm(dim=-1).mean()
        return cuts, tokens, (tokens * self.tensors["loss_weight"]).sum() / tokens.numel() + 0.001 * norm


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def result(case):
    features = case.tensors["features"].clone().requires_grad_()
    cuts, tokens, loss = case.run(features)
    loss.backward()
    return features, cuts, tokens, loss


def test_both_files_are_there():
    assert len(FILES) == 2


def test_cuts(case, result):
    _, cuts, _, _ = result
    spans, start, first = [], 0, cuts.first_frame.tolist()
    for count, num_frames, video in zip(cuts.cubes, case.frames, case.is_video, strict=True):
        offset = first[start]
        edges = [t - offset for t in first[start : start + count]] + [num_frames]
        if video:
            spans.append(list(zip(edges, edges[1:], strict=False)))
        start += count
    # the file's numbering gives the thumbnail slot 0
    published = [[(s - 1, e - 1) for s, e in cubes[1:]] for cubes in case.meta["cubes"]]
    assert spans == published


def test_gate_logits(case, result):
    expected = torch.cat([v for k, v in sorted(case.tensors.items()) if k.startswith("gate_logits.")])
    torch.testing.assert_close(result[1].gate_logits, expected, atol=1e-5, rtol=1e-5)


def test_tokens_and_loss(case, result):
    torch.testing.assert_close(result[2], case.tensors["tokens"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result[3], case.tensors["loss"], atol=1e-5, rtol=1e-5)


def assert_same(ours, expected, name):
    """Equal to 1e-5 of the largest entry; gradients are small, so a plain 1e-5 would say nothing."""
    scale = expected.abs().max()
    assert (ours - expected).abs().max() <= 1e-5 * scale, name


def test_every_gradient(case, result):
    expected = {k.removeprefix("grad."): v for k, v in case.tensors.items() if k.startswith("grad.")}
    assert_same(result[0].grad, expected.pop("features"), "features")
    renamed = {rename_published(name): grad for name, grad in expected.items()}
    ours = dict(case.model.named_parameters())
    assert ours.keys() == renamed.keys()
    for name, parameter in ours.items():
        assert_same(parameter.grad, renamed[name], name)


def test_names_of_whole_checkpoints():
    assert rename_published("model.cubing.thumbnail_fn.1.bias") == "model.thumbnail.thumbnail_fn.1.bias"
    assert rename_published("vision_resampler.proj") == "vision_resampler.proj"
    assert rename_published("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
