"""The vision side's configuration refuses nonsense, survives JSON, and counts cubes."""

import json
from dataclasses import replace

import pytest

from quicksviewer.model.config import (
    CubingConfig,
    LayoutConfig,
    MultimodalConfig,
    ProjectorConfig,
    ResamplerConfig,
    ThumbnailConfig,
    TowerConfig,
    published,
)

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def config(**parts) -> MultimodalConfig:
    parts.setdefault("tower", TowerConfig(hf=SO400M, grid=24))
    return MultimodalConfig(first_special_id=100, time_token_ids=range(11), **parts)


def test_there_and_back_through_json():
    cubing = CubingConfig(kind="uniform", frames_per_cube=7.0)
    before = config(cubing=cubing, projector=ProjectorConfig(kind="linear"))
    after = MultimodalConfig.from_dict(json.loads(json.dumps(before.to_dict())))
    assert after == before


@pytest.mark.parametrize("where, key", [((), "cubin"), (("cubing",), "taw"), (("tower",), "grids")])
def test_unknown_keys_are_refused(where, key):
    values = config().to_dict()
    part = values
    for name in where:
        part = part[name]
    part[key] = 1
    with pytest.raises(ValueError, match=key):
        MultimodalConfig.from_dict(values)


NONSENSE = [
    (TowerConfig, {"kind": "resnet"}, "kind is 'resnet'"),
    (TowerConfig, {"select_layer": 0}, "select_layer"),
    (TowerConfig, {"grid": 0}, "grid"),
    (TowerConfig, {"frames_per_chunk": 0}, "frames_per_chunk"),
    (CubingConfig, {"kind": "gumble"}, "kind is 'gumble'"),
    (CubingConfig, {"frames_per_cube": 0.5}, "frames_per_cube"),
    (CubingConfig, {"min_cube_frames": 0}, "min_cube_frames 0"),
    (CubingConfig, {"min_cube_frames": 6}, "min_cube_frames 6"),
    (CubingConfig, {"max_cube_frames": 4}, "max_cube_frames 4"),
    (CubingConfig, {"min_cube_frames": 5, "max_cube_frames": 8}, "max_cube_frames 8"),
    (CubingConfig, {"tau": 0.0}, "tau"),
    (CubingConfig, {"alpha": 0.0}, "alpha"),
    (CubingConfig, {"alpha": 1.1}, "alpha"),
    (CubingConfig, {"aux_weight": -1.0}, "aux_weight"),
    (CubingConfig, {"noise_end": 2.0}, "noise_end"),
    (CubingConfig, {"noise_share": 0.0}, "noise_share"),
    (ResamplerConfig, {"kind": "qformer"}, "kind is 'qformer'"),
    (ResamplerConfig, {"queries": 0}, "queries"),
    (ResamplerConfig, {"head_width": 0}, "head_width"),
    (ResamplerConfig, {"query_init_std": -0.1}, "query_init_std"),
    (ResamplerConfig, {"time_unit": "minutes"}, "time_unit"),
    (ResamplerConfig, {"kind": "spatial_pool", "queries": 63}, "63 queries"),
    (ThumbnailConfig, {"pooling": "max"}, "pooling"),
    (ProjectorConfig, {"kind": "mlp0x_gelu"}, "mlp0x_gelu"),
    (ProjectorConfig, {"kind": "mlpx_gelu"}, "mlpx_gelu"),
    (LayoutConfig, {"time_style": "roman"}, "time_style"),
    (LayoutConfig, {"time_digits": 0}, "time_digits"),
    (LayoutConfig, {"time_decimals": -1}, "time_decimals"),
]


@pytest.mark.parametrize("kind, values, message", NONSENSE, ids=[str(row[1]) for row in NONSENSE])
def test_nonsense_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


@pytest.mark.parametrize(
    "pooling, queries, message", [("grid", 50, "no square"), ("runs", 100, "no multiple")]
)
def test_a_thumbnail_must_fit_the_tokens_of_a_cube(pooling, queries, message):
    parts = {"resampler": ResamplerConfig(queries=queries), "thumbnail": ThumbnailConfig(pooling=pooling)}
    with pytest.raises(ValueError, match=message):
        config(**parts)
    config(**parts | {"thumbnail": ThumbnailConfig(enabled=False)})


@pytest.mark.parametrize("ids", [range(10), [0] * 11, range(-1, 10)])
def test_time_tokens_are_eleven_different_ids(ids):
    with pytest.raises(ValueError, match="time_token_ids"):
        MultimodalConfig(first_special_id=1, time_token_ids=ids)


@pytest.mark.parametrize(
    "hf, message", [({"hiden_size": 8}, "hiden_size"), ({"num_hidden_layers": 0}, "no layer")]
)
def test_a_bad_tower_is_refused_when_it_is_looked_at(hf, message):
    with pytest.raises(ValueError, match=message):
        _ = TowerConfig(hf=hf).vision


def test_sizes_of_the_published_tower():
    tower = config().tower
    assert (tower.native_grid, tower.out_grid, tower.num_patches, tower.hidden_size) == (27, 24, 576, 1152)
    assert TowerConfig(hf=SO400M, select_layer=-3).vision.num_hidden_layers == 25


def test_tokens_per_cube():
    assert config().tokens_per_cube == 64
    assert config(resampler=ResamplerConfig(kind="identity")).tokens_per_cube == 576


def test_cubes_of_the_published_budget():
    cubing = CubingConfig()
    for n in range(2, 1001):
        assert cubing.num_cubes(n) == max(round(n / 5), 2)
    assert cubing.num_cubes(1) == 1
    with pytest.raises(ValueError, match="at least one frame"):
        cubing.num_cubes(0)


@pytest.mark.parametrize("shortest, longest", [(1, 5), (2, 8), (4, 7), (5, 9), (3, None)])
def test_cubes_can_keep_their_limits(shortest, longest):
    cubing = CubingConfig(min_cube_frames=shortest, max_cube_frames=longest)
    for n in range(1, 1001):
        cubes = cubing.num_cubes(n)
        assert cubes * shortest <= n or cubes == 1
        assert longest is None or n <= cubes * longest


def test_noise_falls_along_a_cosine():
    cubing = CubingConfig()
    assert cubing.noise_weight(0.0) == 1.0
    assert cubing.noise_weight(0.3) == pytest.approx((1 + 0.01) / 2)
    assert cubing.noise_weight(0.6) == cubing.noise_weight(1.0) == pytest.approx(0.01)
    steps = [cubing.noise_weight(i / 100) for i in range(61)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("digits, decimals, width", [(5, 1, 7), (3, 0, 3)])
def test_width_of_a_timestamp(digits, decimals, width):
    assert LayoutConfig(time_digits=digits, time_decimals=decimals).time_width == width


def test_published_switches_every_correction_back():
    old = published(config())
    assert not old.tower.post_layernorm and not old.cubing.energy_features
    assert (old.resampler.query_init_std, old.resampler.time_unit) == (0.0, "frames")
    assert (old.thumbnail.pooling, old.layout.time_style) == ("runs", "plain")
    assert published(old) == old
    assert replace(old.cubing, energy_features=True, energy_prior=1.0) == config().cubing
