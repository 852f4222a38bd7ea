"""Miniatures of the public image data sets, with the columns that their files have."""

from pathlib import Path

import pyarrow as pa
from public_data import CONVERSATION, PICTURE, Case, Stock, document, turns, write_json, write_parquet

OBELICS = pa.schema(
    [
        ("images", pa.list_(pa.string())),
        ("metadata", pa.string()),
        ("general_metadata", pa.string()),
        ("texts", pa.list_(pa.string())),
        ("image_bytes", pa.list_(pa.binary())),
    ]
)


def obelics(folder: Path, stock: Stock) -> Case:
    a, b = stock.jpeg, stock.png
    rows = [
        document([a, "First the base.", b, "Dann das Dach: größer.", a]),
        document(["Text first.", a, "Then more."]),
        document([a]),
        document([a, "one", b, "two", a, "three", b, "four"]),
        document([b"GIF89a but no picture", "broken"]),
        document([a, "short"]),
    ]
    write_parquet(folder / "train-00000-of-00001.parquet", rows, OBELICS)

    def sample(number: int, items: list[bytes | str]) -> dict:
        home = f"obelics_media/train-00000-of-00001/00000/{number:08d}"
        name = {a: f"{home}_0.jpg", b: f"{home}_1.png"}
        paths = [name[item] if isinstance(item, bytes) else None for item in items]
        texts = [None if isinstance(item, bytes) else item for item in items]
        uid = f"obelics_train-00000-of-00001_{number}"
        return {"uid": uid, "data_type": "interleave", "image": paths, "caption": texts}

    four = sample(0, [a, "First the base.", b, "Dann das Dach: größer."])
    eight = sample(3, [a, "one", b, "two", a, "three", b, "four"])
    two = sample(5, [a, "short"])
    samples = {"": [four, eight, two], "_gt2": [four, eight], "_gt3": [eight], "_gt4": [eight]}
    skipped = {"content": 2, "cut": 2, "medium refused": 1}
    return Case(["--input", str(folder)], samples, skipped, rows=6, used=3)


def llavapretrain(folder: Path, stock: Stock) -> Case:
    (folder / "images/00453").mkdir(parents=True)
    (folder / "images/00453/004539375.jpg").write_bytes(stock.jpeg)
    talk = turns("Render a clear summary.\n<image>", "select luxury furniture 3 – inch gel")
    rows = [
        {"id": "004539375", "image": "00453/004539375.jpg", "conversations": talk},
        {"id": "002239345", "image": "00223/002239345.jpg", "conversations": talk},
        {"id": "000000001", "image": ["00453/004539375.jpg"], "conversations": talk},
        {"id": "000000002", "image": "00453/004539375.jpg", "conversations": talk[:1]},
    ]
    write_json(folder / "blip_laion_cc_sbu_558k.json", rows)
    uid = "llavapretrain_blip_laion_cc_sbu_558k_0"
    good = {
        "uid": uid,
        "data_type": "conversations",
        "image": "00453/004539375.jpg",
        "conversations": talk,
        "metadata": {"id": "004539375"},
    }
    words = ["--input", f"{folder}/blip_laion_cc_sbu_558k.json", "--image_dir", f"{folder}/images"]
    return Case(words, {"": [good]}, {"medium missing": 1, "sample": 1, "schema": 1}, rows=4, used=1)


ONEVISION = pa.schema(
    [("id", pa.string()), ("image", PICTURE), ("conversations", CONVERSATION), ("data_source", pa.string())]
)


def llavarecap558(folder: Path, stock: Stock) -> Case:
    from quicksviewer.data.instructions import pick_instruction

    talk = turns(
        "<image>\nPlease generate detailed descriptions of the given image.", "A sofa, 3 seats wide."
    )
    rows = [
        {"id": "001", "image": {"bytes": stock.jpeg, "path": "001.jpg"}, "conversations": talk},
        {"id": "002", "image": {"bytes": None, "path": "002.jpg"}, "conversations": talk},
        {"id": "003", "image": {"bytes": stock.jpeg[:200], "path": "003.jpg"}, "conversations": talk},
    ]
    path = folder / "data/train-00000-of-00001.parquet"
    write_parquet(path, rows, ONEVISION.remove(3))
    uid = "llavarecap558_train-00000-of-00001_0"
    question = f"<image>\n{pick_instruction('image', uid)}"
    good = {
        "uid": uid,
        "data_type": "conversations",
        "image": "llavarecap558_media/train-00000-of-00001/00000/00000000_0.jpg",
        "conversations": [{"from": "human", "value": question}, talk[1]],
        "metadata": {"id": "001"},
    }
    words = ["--input", str(path)]
    return Case(words, {"": [good]}, {"content": 1, "medium refused": 1}, rows=3, used=1)


def llavaov_single_image(folder: Path, stock: Stock) -> Case:
    talk, words = turns("<image>\nHow many?", "Two."), turns("What is 1 + 1?", "2")
    rows = [
        {"id": "a/1", "image": {"bytes": stock.png, "path": None}, "conversations": talk, "data_source": "x"},
        {"id": "a/1", "image": None, "conversations": words, "data_source": "magpie_pro"},
    ]
    write_parquet(folder / "ai2d/train-00000-of-00001.parquet", rows, ONEVISION)
    write_parquet(folder / "geo3k/train-00000-of-00001.parquet", rows[1:], ONEVISION)
    kind = {"data_type": "conversations", "metadata": {"id": "a/1"}}
    name = "train-00000-of-00001"
    home = "llavaov_single_image_media/ai2d/train-00000-of-00001/00000"
    samples = [
        {
            "uid": f"llavaov_single_image_ai2d.{name}_0",
            "image": f"{home}/00000000_0.png",
            "conversations": talk,
        },
        {"uid": f"llavaov_single_image_ai2d.{name}_1", "conversations": words},
        {"uid": f"llavaov_single_image_geo3k.{name}_0", "conversations": words},
    ]
    return Case(["--input", str(folder)], {"": [{**one, **kind} for one in samples]}, rows=3, used=3)


def llavaov_multi_images(folder: Path, stock: Stock) -> Case:
    (folder / "nlvr2").mkdir(parents=True)
    (folder / "nlvr2/1.jpg").write_bytes(stock.jpeg)
    (folder / "nlvr2/2.png").write_bytes(stock.png)
    (folder / "nlvr2/text.jpg").write_text("no picture")
    talk = turns("<image> <image>\nIs it so?", "Yes")
    meta = {"dataset": "nlvr2", "split": "train", "num_sample": 2, "task_instruction": ""}
    rows = [
        {"sample_id": 0, "image": ["nlvr2/1.jpg", "nlvr2/2.png"], "conversations": talk, "metadata": meta},
        {"sample_id": 1, "image": ["nlvr2/1.jpg", "nlvr2/3.png"], "conversations": talk, "metadata": meta},
        {"sample_id": 2, "image": ["nlvr2/1.jpg", "nlvr2/text.jpg"], "conversations": talk, "metadata": meta},
    ]
    write_json(folder / "m4_instruct_annotations.json", rows)
    good = {
        "uid": "llavaov_multi_images_m4_instruct_annotations_0",
        "data_type": "conversations",
        "image": ["nlvr2/1.jpg", "nlvr2/2.png"],
        "conversations": talk,
    }
    words = ["--ann_path", f"{folder}/m4_instruct_annotations.json", "--image_dir", str(folder)]
    return Case(words, {"": [good]}, {"medium missing": 1, "medium refused": 1}, rows=3, used=1)


CASES = {
    one.__name__: one
    for one in (obelics, llavapretrain, llavarecap558, llavaov_single_image, llavaov_multi_images)
}
"""Converter -> function (folder, stock) that writes the data set and gives a Case."""
