"""The helper that reads code blocks out of seed documents."""

import traceback

import pytest
from blocks import Block, Document, find_blocks, replaced, run

TEXT = """# Guide
## First
```python
a = 1

b = 2
```
text
### Inner
```
plain
```
## Second
```bash
ls
```
"""


def test_blocks_know_their_place():
    assert find_blocks(TEXT) == [
        Block(4, ("Guide", "First"), "python", "a = 1\n\nb = 2\n"),
        Block(11, ("Guide", "First", "Inner"), "", "plain\n"),
        Block(15, ("Guide", "Second"), "bash", "ls\n"),
    ]


def test_an_open_fence_is_an_error():
    with pytest.raises(ValueError, match="begins at line 2 is never closed"):
        find_blocks("```python\na = 1\n")


@pytest.fixture
def document(tmp_path, monkeypatch):
    (tmp_path / "guide.md").write_text(TEXT)
    monkeypatch.setattr("blocks.SEEDS", tmp_path)
    return Document("guide.md")


def test_a_block_is_found_by_its_heading_and_run(document):
    assert run(document, document.block("First"), {"a = 1": "a = 10"})["a"] == 10
    with pytest.raises(ValueError, match="has 0 blocks under 'Third'. Headings: First, Inner, Second"):
        document.block("Third")


def test_a_heading_of_that_very_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "two.md").write_text("# Use BLIP\n```python\na = 1\n```\n# BLIP\n```python\na = 2\n```\n")
    monkeypatch.setattr("blocks.SEEDS", tmp_path)
    document = Document("two.md")
    assert document.block("BLIP").code == "a = 2\n" and document.block("Use").code == "a = 1\n"


def test_names_carry_over(document):
    names = {"__name__": "seed", "c": 3}
    assert run(document, document.block("First"), names=names) is names
    assert (names["a"], names["b"], names["c"]) == (1, 2, 3)


def test_a_traceback_shows_the_line_of_the_document(document):
    with pytest.raises(ZeroDivisionError) as caught:
        run(document, document.block("First"), {"b = 2": "b = 1 / 0"})
    assert traceback.extract_tb(caught.tb)[-1].lineno == TEXT.splitlines().index("b = 2") + 1


def test_longer_words_are_replaced_first_and_strangers_refused(document):
    assert replaced(document, "a = 1", {"a": "z", "a = 1": "c = 2"}) == "c = 2"
    with pytest.raises(ValueError, match=r"does not say \['zebra'\]"):
        replaced(document, "a = 1", {"zebra": "z"})
