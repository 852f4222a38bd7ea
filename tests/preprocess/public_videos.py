"""Miniatures of the public video data sets, with the columns and keys that their files have."""

import csv
import json
from pathlib import Path

import pyarrow as pa
from public_data import CONVERSATION, Case, Stock, turns, write_json, write_parquet

MOMENT = pa.struct([("description", pa.string()), ("timestamp", pa.string())])
FINEVIDEO_CONTENT = pa.struct(
    [
        ("description", pa.string()),
        ("fps", pa.float64()),
        ("qAndA", pa.list_(pa.struct([("answer", pa.string()), ("question", pa.string())]))),
        ("storylines", pa.struct([("climax", MOMENT), ("description", pa.string()), ("title", pa.string())])),
        ("title", pa.string()),
    ]
)
FINEVIDEO = pa.schema(
    [
        ("mp4", pa.binary()),
        (
            "json",
            pa.struct(
                [
                    ("content_fine_category", pa.string()),
                    ("content_metadata", FINEVIDEO_CONTENT),
                    ("duration_seconds", pa.int64()),
                    ("original_video_filename", pa.string()),
                    ("youtube_title", pa.string()),
                ]
            ),
        ),
    ]
)


def finevideo(folder: Path, stock: Stock) -> Case:
    content = {
        "description": "A lamp is built.",
        "fps": 23.976,
        "qAndA": [
            {"question": "What is built?", "answer": "A lamp."},
            {"question": "Who?", "answer": "Ann."},
        ],
        "storylines": {
            "climax": {"description": "The lamp glows.", "timestamp": "00:00:02.000"},
            "description": "Ann builds a lamp.",
            "title": "Light",
        },
        "title": "Lamp",
    }
    bare = {"description": None, "fps": 25.0, "qAndA": [], "storylines": None, "title": "Nothing"}

    def film(data: bytes, meta: dict) -> dict:
        return {"mp4": data, "json": {"content_metadata": meta, "original_video_filename": "sample_0.mp4"}}

    clip = stock.clip.read_bytes()
    rows = [film(clip, content), film(clip, bare), film(b"not a film", {**bare, "description": "Lost."})]
    write_parquet(folder / "data/train-00000-of-01357.parquet", rows, FINEVIDEO)
    stem = "finevideo_train-00000-of-01357_0"
    home = "finevideo_media/train-00000-of-01357/00000/00000000"

    def asked(tail: str, question: str, answer: str) -> dict:
        kind = {"uid": f"{stem}{tail}", "data_type": "conversations", "video": f"{home}_0.mp4"}
        return {**kind, "conversations": turns(question, answer)}

    caption = {"uid": f"{stem}_caption", "data_type": "caption", "video": f"{home}_0.mp4"}
    outline = "Please provide a general outline of the storyline of this video."
    climax = "Please locate the climax of this video: when is it, and what happens?"
    samples = {
        "_caption_storyline": [
            {**caption, "caption": "A lamp is built."},
            asked("_storyline", outline, "Ann builds a lamp."),
        ],
        "_qa_climax": [
            asked("_qa0", "What is built?", "A lamp."),
            asked("_qa1", "Who?", "Ann."),
            asked("_climax", climax, "00:00:02.000: The lamp glows."),
        ],
    }
    words = ["--input", f"{folder}/data/*.parquet"]
    return Case(words, samples, {"content": 1, "medium refused": 1}, rows=3, used=1)


def finevideo_filtered(folder: Path, stock: Stock) -> Case:
    stock.clips(folder / "videos", "sample_0.mp4")
    rows = [
        {"uid": "finevideo_0_qAndA_1", "conversations": turns("<video>\nWhat?", "A lamp.")},
        {"uid": "finevideo_0", "conversations": turns("Please locate the timestamp of the climax.", "2 s")},
        {"uid": "finevideo_0", "conversations": turns("Please provide a general outline.", "Ann builds.")},
    ]
    lines = [json.dumps({**row, "video": "/data/finevideo/sample_0.mp4"}) for row in rows]
    (folder / "finevideo_filtered.jsonl").write_text("\n".join([*lines, "", "{broken", ""]))

    def sample(number: int) -> dict:
        uid = f"finevideo_filtered_finevideo_filtered_{number}"
        talk = rows[number]["conversations"]
        kind = {"uid": uid, "data_type": "conversations", "video": "sample_0.mp4"}
        return {**kind, "conversations": talk}

    samples = {"_caption_storyline": [sample(2)], "_qa_climax": [sample(0), sample(1)]}
    words = ["--ann_path", f"{folder}/finevideo_filtered.jsonl", "--video_dir", f"{folder}/videos"]
    return Case(words, samples, {"unreadable": 1}, rows=4, used=3)


def anetcaptions(folder: Path, stock: Stock) -> Case:
    stock.clips(folder / "videos", "v_QOlSCBRmfWY.mp4", "v_ünïcode.mkv")
    rows = {
        "v_QOlSCBRmfWY": {
            "duration": 82.73,
            "timestamps": [[0.83, 19.86], [17.37, 60.81]],
            "sentences": ["A young woman stands on a stage.", " The girl dances. "],
        },
        "v_ünïcode": {"duration": 3, "timestamps": [[0, 3]], "sentences": ["Schön."]},
        "v_gone": {"duration": 3, "timestamps": [[0, 3]], "sentences": ["Lost."]},
        "v_QOlSCBRmfWY_2": {"duration": "3", "timestamps": [], "sentences": []},
    }
    write_json(folder / "train.json", rows)
    told = "A young woman stands on a stage. The girl dances."
    kind = {"data_type": "caption"}
    first = {"uid": "anetcaptions_train_0", "video": "v_QOlSCBRmfWY.mp4", "caption": told, "video_len": 82.73}
    second = {"uid": "anetcaptions_train_1", "video": "v_ünïcode.mkv", "caption": "Schön.", "video_len": 3}
    words = ["--input", f"{folder}/train.json", "--media_root", f"{folder}/videos"]
    samples = {"": [{**first, **kind}, {**second, **kind}]}
    return Case(words, samples, {"medium missing": 1, "schema": 1}, rows=4, used=2)


def sharegpt4video(folder: Path, stock: Stock) -> Case:
    stock.clips(folder / "videos", "panda/p1.mp4")

    def row(path: str, *captions: tuple[str, str]) -> dict:
        return {
            "video_id": Path(path).stem,
            "video_path": path,
            "timestamp": ["00:00:00.000", "00:00:02.000"],
            "keyframe": [0, 8],
            "captions": [{"idx": idx, "content": text} for idx, text in captions],
            "zip_folder": "panda/panda_videos_1.zip",
        }

    rows = [
        row("panda/p1.mp4", ("1", "A start."), ("2", "An end."), ("-1", "The whole.")),
        row("panda/p1.mp4", ("1", "A start.")),
        row("panda/p2.mp4", ("-1", "Not there.")),
    ]
    (folder / "sharegpt4video_40k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    uid = "sharegpt4video_sharegpt4video_40k_0"
    good = {"uid": uid, "data_type": "caption", "video": "panda/p1.mp4", "caption": "The whole."}
    words = ["--ann_path", f"{folder}/sharegpt4video_40k.jsonl", "--video_dir", f"{folder}/videos"]
    return Case(words, {"": [good]}, {"content": 1, "medium missing": 1}, rows=3, used=1)


def webvid400k(folder: Path, stock: Stock) -> Case:
    stock.clips(folder / "videos", "055/1.mp4")
    pair = {"i": "Describe the clip.", "q": "", "a": "A lamp."}
    rows = [{"video": "055/1.mp4", "QA": [pair]}, {"video": "055/2.mp4", "QA": [pair]}]
    write_json(folder / "train.json", rows)
    good = {"uid": "webvid400k_train_0_0", "data_type": "conversations", "video": "055/1.mp4"}
    good["conversations"] = turns("Describe the clip.", "A lamp.")
    words = ["--input", f"{folder}/train.json", "--media_root", f"{folder}/videos"]
    return Case(words, {"": [good]}, {"medium missing": 1}, rows=2, used=1)


def webvid_csv(folder: Path, stock: Stock) -> Case:
    stock.clips(folder / "videos", "000001_000050/1066674784.mp4")
    path = folder / "results_2M_train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        url = "https://ak.picdn.net/shutterstock/videos/1066674784/preview/stock.mp4"
        writer.writerow(["1066674784", url, "PT00H00M10S", "000001_000050", "Merida,\nMéxico: “calle”"])
        writer.writerow(["7", url, "PT00H00M10S", "000001_000050", "Lost"])
    good = {
        "uid": "webvid_csv_results_2M_train_0",
        "data_type": "caption",
        "video": "000001_000050/1066674784.mp4",
        "caption": "Merida,\nMéxico: “calle”",
    }
    words = ["--input", str(path), "--media_root", f"{folder}/videos"]
    return Case(words, {"": [good]}, {"medium missing": 1}, rows=2, used=1)


def moviechat(folder: Path, stock: Stock) -> Case:
    stock.clips(folder / "raw_videos", "AWA-1.mp4")
    pairs = [{"question": "Is it day?", "answer": "Yes"}, {"question": "How many?", "answer": "2"}]
    film = {
        "info": {"video_path": "AWA-1.mp4", "class": "movie", "w": 1280, "h": 720, "fps": 25.0},
        "caption": "A stag stands.",
        "global": pairs,
        "breakpoint": [{"time": 4000, "question": "What now?", "answer": "Rain"}],
    }
    write_json(folder / "jsons/AWA-1.json", film)
    write_json(folder / "jsons/AWA-2.json", film)
    (folder / "jsons/AWA-3.json").write_text("{broken")
    video = {"video": "AWA-1.mp4"}
    caption = {"uid": "moviechat_AWA-1_0_caption", "data_type": "caption", "caption": "A stag stands."}
    samples = [{**caption, **video}]
    for place, pair in enumerate(pairs):
        talk = turns(pair["question"], pair["answer"])
        uid = f"moviechat_AWA-1_0_qa{place}"
        samples.append({"uid": uid, "data_type": "conversations", "conversations": talk, **video})
    words = ["--ann_dir", f"{folder}/jsons", "--video_dir", f"{folder}/raw_videos"]
    return Case(words, {"": samples}, {"medium missing": 3, "unreadable": 1}, rows=3, used=1)


def longvilasft(folder: Path, stock: Stock) -> Case:
    stock.clips(folder / "videos720", "00000/000000001.mp4", "00000/000000002.mp4")
    beside = {"url": "https://youtube.com/watch?v=abc", "yt_meta_dict": {"info": {"id": "abc"}}}
    write_json(folder / "videos720/00000/000000001.json", beside)
    talk = turns("Who wins?\n<video>", "Nobody.")
    schema = pa.schema([("id", pa.string()), ("video", pa.string()), ("conversations", CONVERSATION)])
    rows = [{"id": id_, "video": f"{id_}.mp4", "conversations": talk} for id_ in ("abc", "xyz")]
    write_parquet(folder / "data/train-00000-of-00001.parquet", rows, schema)
    good = {
        "uid": "longvilasft_train-00000-of-00001_0",
        "data_type": "conversations",
        "video": "00000/000000001.mp4",
        "conversations": turns("Who wins?", "Nobody."),
        "metadata": {"id": "abc"},
    }
    words = ["--ann_path", f"{folder}/data/train-00000-of-00001.parquet", "--video_dir"]
    return Case([*words, f"{folder}/videos720"], {"": [good]}, {"medium missing": 1}, rows=2, used=1)


# VideoChat2-IT

CHAT2_PARTS = {
    "textvr": ("Driving/1.mp4", "Driving/1.mp4", "Driving/1.mp4", "I"),
    "k710": (
        "p2:s3://k600/train_videos/eating_chips/xq_000001_000011.mp4",
        "kinetics/k600/train/xq_000001_000011.mp4",
        "kinetics/k600/train/xq_000001_000011.mp4",
        "I Q",
    ),
    "nextqa": ("1164/3238737531.mp4", "any/3238737531.mp4", "any/3238737531.mp4", "I Q"),
    "clevrer_qa": ("video_07428.mp4", "07000-08000/video_07428.mp4", "07000-08000/video_07428.mp4", "I Q"),
    "clevrer_mc": ("video_07428.mp4", "07000-08000/video_07428.mp4", "07000-08000/video_07428.mp4", "I Q"),
    "egoqa": ("0a/split_1.mp4", "0a/split_1.mp4", "0a/split_1.mp4", "I Q"),
    "tgif_frame_qa": ("tumblr_a.gif", "tumblr_a.gif", "MEDIA/tumblr_a.mp4", "Q"),
    "tgif_transition_qa": ("tumblr_a.gif", "tumblr_a.gif", "MEDIA/tumblr_a.mp4", "I Q"),
    "sharegptvideo_vqa": ("v_abc", "x/v_abc.mp4", "x/v_abc.mp4", "I Q"),
    "sharegptvideo_caption": ("v_abc", "x/v_abc.mp4", "x/v_abc.mp4", "I"),
    "videochat2": ("clip_1.mp4", "clip_1.mp4", "clip_1.mp4", "Q"),
    "videochatgpt": ("v_k_ZXmr.mp4", "v_k_ZXmr.mkv", "v_k_ZXmr.mkv", "Q"),
}
"""Part -> video in the annotations, file below the media root, video of the sample, what is asked."""


def videochat2it(part: str, folder: Path, stock: Stock) -> Case:
    said, file, video, asked = CHAT2_PARTS[part]
    path = folder / "videos" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(stock.gif if file.endswith(".gif") else stock.clip.read_bytes())
    pairs = [{"i": "I", "q": "Q", "a": "A"}, {"i": "I", "q": "Q", "a": "B"}]
    gone = said.replace(".", "_gone.") if "." in said else f"{said}_gone"
    rows = [{"video": said, "QA": pairs}, {"video": gone, "QA": pairs[:1]}]
    write_json(folder / "train.json", rows)
    name = f"videochat2it_{part}"
    samples = [
        {
            "uid": f"{name}_train_0_{place}",
            "data_type": "conversations",
            "video": video.replace("MEDIA", f"{name}_media"),
            "conversations": turns(asked, pair["a"]),
        }
        for place, pair in enumerate(pairs)
    ]
    words = ["--input", f"{folder}/train.json", "--media_root", f"{folder}/videos"]
    return Case(words, {"": samples}, {"medium missing": 1}, rows=2, used=1)


def youcook2(folder: Path, stock: Stock) -> Case:
    """Two steps with one end, which published names confused; one step that is not in the annotations."""
    stock.clips(folder / "raw_videos", "training/101/GLd3aX16zBg.mp4")
    steps = [
        {"id": 0, "segment": [0, 3], "sentence": "spread"},
        {"id": 1, "segment": [1, 3], "sentence": "x"},
    ]
    video = {"annotations": steps, "duration": 241.62, "subset": "training", "recipe_type": "101"}
    write_json(folder / "annotations.json", {"database": {"GLd3aX16zBg": video}})
    pair = [{"i": "What is done?", "q": "", "a": "spread margarine"}]
    rows = [{"video": f"training/101/GLd3aX16zBg/split_{step}.mp4", "QA": pair} for step in (0, 1, 7)]
    write_json(folder / "train.json", rows)
    samples = [
        {
            "uid": f"videochat2it_youcook2_train_{step}_0",
            "data_type": "conversations",
            "video": "training/101/GLd3aX16zBg.mp4",
            "start_sec": steps[step]["segment"][0],
            "end_sec": steps[step]["segment"][1],
            "conversations": turns("What is done?", "spread margarine"),
        }
        for step in (0, 1)
    ]
    words = ["--input", f"{folder}/train.json", "--media_root", f"{folder}/raw_videos"]
    words += ["--extra", f"annotations={folder}/annotations.json"]
    return Case(words, {"": samples}, {"content": 1}, rows=3, used=2)


CASES = {
    one.__name__: one
    for one in (
        *(finevideo, finevideo_filtered, anetcaptions, sharegpt4video, webvid400k, webvid_csv),
        *(moviechat, longvilasft),
    )
}
CASES["videochat2it_youcook2"] = youcook2
CASES |= {
    f"videochat2it_{part}": lambda folder, stock, part=part: videochat2it(part, folder, stock)
    for part in CHAT2_PARTS
}
"""Converter -> function (folder, stock) that writes the data set and gives a Case."""
