"""Readers that misbehave, and the proof that nothing is left of the children in which they did."""

import gc

import pytest
from child_checks import children, open_files

from quicksviewer.utils import decode_pool
from quicksviewer.utils.data_util import VIDEO_READERS


@pytest.fixture
def evil(monkeypatch):
    monkeypatch.setitem(VIDEO_READERS, "evil", "evil_readers:EvilReader")
    monkeypatch.setitem(VIDEO_READERS, "burglar", "evil_readers:BurglarReader")


@pytest.fixture
def nothing_is_left():
    """No test leaves a child, a zombie, a descriptor or shared memory behind."""
    decode_pool.pool.retire()
    gc.collect()
    before = open_files()
    yield
    decode_pool.pool.retire()
    gc.collect()
    assert children() == []
    assert open_files() == before
