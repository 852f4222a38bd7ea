"""What an error says where there is nothing at a path, and which names may be on the hub."""

import pytest

from quicksviewer.utils.places import maker_of, may_be_on_hub, missing

EASY = "python -m quicksviewer.data.easy_vqa"


@pytest.mark.parametrize(
    "path, maker",
    [
        ("output/easy_vqa", EASY),
        ("./output/easy_vqa/", EASY),
        ("/home/a/output/easy_vqa/train.jsonl", EASY),
        ("output/easy_vqa_two", None),
        ("more_output/easy_vqa", None),
        ("output/blip_vqa/config.json", "python -m quicksviewer train --recipe blip_vqa"),
    ],
)
def test_what_makes_a_path_is_found_by_its_folders(path, maker):
    assert maker_of(path) == maker


def test_what_is_missing_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert missing("data", "a.jsonl") == f"there is no data at a.jsonl in {tmp_path}"
    assert missing("data", "/a.jsonl") == "there is no data at /a.jsonl"
    assert missing("folder", "/output/easy_vqa").endswith(f"at /output/easy_vqa; it is made by {EASY}")


@pytest.mark.parametrize("name", ["gpt2", "Salesforce/blip-vqa-base", "output/blip"])
def test_a_word_or_two_may_be_on_the_hub(name):
    assert may_be_on_hub(name)


@pytest.mark.parametrize("name", ["/tmp/x", "./x", "../x", "a/b/c", "a b", "a/"])
def test_other_paths_may_not(name):
    assert not may_be_on_hub(name)
