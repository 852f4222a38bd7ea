"""The same shard tasks on a real Ray of this machine: the same bytes."""

import pytest
from public_data import onevision_rows, tree

from quicksviewer.preprocess.convert import main


def test_ray_gives_the_bytes_of_the_local_runner(tmp_path, stock, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    rows = onevision_rows(tmp_path, stock, 9)
    words = ["llavaov_single_image", "--input", str(rows), "--rows_per_shard", "3"]
    assert main([*words, "--output", f"{tmp_path}/local", "--num_workers", "1"]) == 0
    assert main([*words, "--output", f"{tmp_path}/ray", "--num_workers", "1", "--runner", "ray"]) == 0
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    assert len(tree(tmp_path / "ray")) == 2 + 8
    assert not ray.is_initialized()
