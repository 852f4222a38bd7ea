"""Published checkpoints become ours: the same weights and numbers; what is not understood is refused."""

import json
from pathlib import Path

import pytest
import torch
from published_checkpoint import LIKE_PUBLISHED, publish, their_tensors
from safetensors.torch import load_file, save_file
from test_parity import FILES, Case
from tiny_world import BACKBONES, MM, video_row, videos
from torch import nn
from transformers import AutoTokenizer

from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.model import import_published as word
from quicksviewer.model import unpickle_child
from quicksviewer.model.builder import load_pretrained_model, new_model, read_tower
from quicksviewer.model.config import MultimodalConfig, published
from quicksviewer.model.export_probe import aligned
from quicksviewer.model.folder_aside import folder_aside
from quicksviewer.model.import_config import REQUIRED, TEMPLATES_OF, tower_config
from quicksviewer.model.import_pickles import PICKLE, PICKLE_INDEX, read_weights, unpickle
from quicksviewer.model.import_published import import_published
from quicksviewer.model.language_model.multimodal import MEDIA_KEYS
from quicksviewer.model.llava_arch import Media
from quicksviewer.model.raw_weights import RawTensor
from quicksviewer.synthetic.tiny import make_language_model, make_tower
from quicksviewer.utils.manifest import check

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = {**TEMPLATES_OF, "llama": "llama_3", "minimind": "plain"}


def built(root: Path, backbone: str, template: str, **sections):
    """A fresh model that behaves as the published one."""
    torch.manual_seed(0)
    mm = {
        name: {**MM.get(name, {}), **LIKE_PUBLISHED[name], **sections.get(name, {})}
        for name in LIKE_PUBLISHED
    }
    media = {"max_frames": 16}
    return new_model(str(root / backbone), str(root / "siglip"), mm, template, media, dtype=torch.float32)


def like_published(tiny, backbone: str):
    """The same with random weights where they start at a constant."""
    loaded = built(tiny, backbone, TEMPLATES[backbone])
    loaded.model.resize_token_embeddings(loaded.model.mm_config.first_special_id)  # no rows without a word
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    if backbone == "llama":  # the published models have a head of their own
        loaded.model.config.tie_word_embeddings = False
        loaded.model.lm_head.weight = nn.Parameter(torch.randn_like(loaded.model.lm_head.weight))
    return loaded


def batch_of(tiny, loaded, count: int = 2):
    rows = [video_row(loaded, video) for video in videos(tiny)[:count]]
    return DataCollatorForSupervisedDataset(loaded.processor.pad_id)(rows)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ours_to_published_and_back_is_equal_bit_by_bit(tiny, tmp_path, backbone):
    ours = like_published(tiny, backbone)
    ours.model.eval()
    folder = publish(ours.model, backbone, tiny / backbone, tmp_path / "published")
    import_published(folder, tmp_path / "made", tiny / "siglip", TEMPLATES[backbone])
    check(tmp_path / "made")
    made = load_pretrained_model(str(tmp_path / "made"))
    assert made.model.mm_config == published(made.model.mm_config)
    before, after = ours.model.state_dict(), made.model.state_dict()
    assert before.keys() == after.keys()
    for state in (before, after):
        state["mm_tokens.weight"] = state["mm_tokens.weight"][2:]  # two are slots, never looked up
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    wanted, found = batch_of(tiny, ours), batch_of(tiny, made)
    assert torch.equal(wanted["input_ids"], found["input_ids"])
    with torch.no_grad():
        assert torch.equal(aligned(ours.model)(**wanted).logits, aligned(made.model)(**found).logits)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_parity_files_pass_through_the_map_to_the_published_numbers(tmp_path, path):
    case = Case(path)
    vision, width = case.meta["vision_dim"], case.meta["lm_dim"]
    make_language_model(
        tmp_path / "qwen2", "qwen2", ["a b c 0.5 12 ?"] * 50, hidden_size=width, num_hidden_layers=1
    )
    make_tower(tmp_path / "siglip", "siglip", hidden_size=vision, num_hidden_layers=1, num_attention_heads=2)
    resampler = {"queries": case.meta["queries"], "head_width": width // case.meta["heads"]}
    ours = built(tmp_path, "qwen2", "plain", tower={"grid": case.meta["grid"]}, resampler=resampler)
    weights = {
        "model." + name.replace("resampler.", "vision_resampler."): tensor
        for name, tensor in case.tensors.items()
        if name.startswith(("cubing", "resampler"))
    }

    def write(tensors, place):
        assert weights.keys() <= tensors.keys()
        save_file(tensors | weights, place)

    folder = publish(ours.model, "qwen2", tmp_path / "qwen2", tmp_path / "published", write)
    import_published(folder, tmp_path / "made", tmp_path / "siglip", "plain")
    case.model = load_pretrained_model(str(tmp_path / "made")).model
    with torch.no_grad():
        cuts, tokens, loss = case.run(case.tensors["features"])
    gate = torch.cat([v for k, v in sorted(case.tensors.items()) if k.startswith("gate_logits.")])
    torch.testing.assert_close(cuts.gate_logits, gate, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens, case.tensors["tokens"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, case.tensors["loss"], atol=1e-5, rtol=1e-5)


# --- the prompt ---


def test_the_prompt_is_the_published_one(tiny, tmp_path):
    ours = like_published(tiny, "qwen2")
    folder = publish(ours.model, "qwen2", tiny / "qwen2", tmp_path / "published")
    import_published(folder, tmp_path / "made", tiny / "siglip")
    made = load_pretrained_model(str(tmp_path / "made"))
    content = [{"type": "video", "path": str(videos(tiny)[0])}, {"type": "text", "text": "\nWhy?"}]
    messages = [{"role": "user", "content": content}]
    batch = made.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    with torch.no_grad():
        encoded = made.model.encode_media(Media(*(batch[key] for key in MEDIA_KEYS)))
        ids, mask = made.model.write_times(batch["input_ids"], batch["attention_mask"], encoded)
    text = made.tokenizer.decode(ids[0][mask[0].bool()])
    seconds = batch["frame_times"][encoded.cuts.first_frame].tolist()
    cubes = "".join(f"{round(second, 1)}" + "<visual>" * 4 for second in seconds)
    video = f"<video_start><thumbnail_start>{'<visual>' * 4}<thumbnail_end>{cubes}<video_end>"
    assert text == f"<|im_start|>user\n{video}\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def join_digits(folder: Path) -> None:
    """Let a tokenizer write 12 as one token, in the place of another word."""
    state = json.loads((folder / "tokenizer.json").read_text())
    split = state["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = split["Regex"].replace(r"|\p{N}|", r"|\p{N}+|")
    vocabulary = state["model"]["vocab"]
    *_, last = sorted(vocabulary, key=vocabulary.get)
    vocabulary["12"] = vocabulary.pop(last)
    merges = [merge for merge in state["model"]["merges"] if "".join(merge) != last]
    state["model"]["merges"] = [["1", "2"], *merges]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # which takes the file as it is
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_tokenizer_that_joins_digits_is_spoken_of(tiny, tmp_path):
    ours = like_published(tiny, "qwen2")
    folder = publish(ours.model, "qwen2", tiny / "qwen2", tmp_path / "published")
    assert import_published(folder, tmp_path / "single", tiny / "siglip") == []
    join_digits(folder)
    notes = import_published(folder, tmp_path / "joined", tiny / "siglip")
    assert notes == [word.GROUPED_DIGITS]


# --- refused ---


@pytest.fixture
def folder(tiny, tmp_path):
    return publish(like_published(tiny, "qwen2").model, "qwen2", tiny / "qwen2", tmp_path / "published")


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_unknown_and_misshapen_tensors_are_all_named(tiny, folder, tmp_path, capsys):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.cubing.proj_fn.3.bias"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors |= {"model.image_newline": torch.ones(2), "model.vision_resampler.proj": torch.ones(3, 3)}
    save_file(tensors, folder / "model.safetensors")
    assert word.main([str(folder), str(tmp_path / "made"), "--vision-tower", str(tiny / "siglip")]) == 1
    said = capsys.readouterr().err
    assert "4 weights do not fit the model" in said
    for fault in (
        "missing: cubing.proj_fn.3.bias",
        "missing: model.layers.1.mlp.up_proj.weight",
        "unknown: model.image_newline",
        "vision_resampler.proj is [3, 3], expected [64, 64]",
    ):
        assert fault in said
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("made")} == set()


@pytest.mark.parametrize("name", REQUIRED)
def test_a_config_of_another_behaviour_is_refused(tiny, folder, tmp_path, name):
    change_config(folder, **{name: {"mm_resampler_type": "spatial_pool"}.get(name, 2)})
    with pytest.raises(ValueError, match=f"{name} = "):
        import_published(folder, tmp_path / "made", tiny / "siglip")


def test_a_second_run_to_one_folder_is_refused(tiny, folder, tmp_path):
    with folder_aside(tmp_path / "made"), pytest.raises(ValueError, match=r"another run is writing .*made"):
        import_published(folder, tmp_path / "made", tiny / "siglip")


def test_other_checkpoints_and_towers_are_refused(tiny, folder, tmp_path):
    with pytest.raises(ValueError, match="with --vision-tower"):
        import_published(folder, tmp_path / "made")
    change_config(folder, model_type="llava_llama")
    with pytest.raises(ValueError, match="model type of a published checkpoint"):
        import_published(folder, tmp_path / "made", tiny / "siglip")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        read_weights(folder, tmp_path / "workspace")


def test_tokens_that_are_not_the_last_are_refused(tiny, folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<later>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="must be the last of the vocabulary"):
        import_published(folder, tmp_path / "made", tiny / "siglip")
    AutoTokenizer.from_pretrained(tiny / "qwen2").save_pretrained(folder)
    with pytest.raises(ValueError, match="lacks <patch_start>"):
        import_published(folder, tmp_path / "other", tiny / "siglip")


def test_the_tower_of_the_published_models_is_known_from_its_weights():
    hf = read_tower(ROOT / "configs/shapes/siglip-so400m-patch14-384")["hf"]
    start = "vision_tower.vision."
    shapes = {
        "embeddings.patch_embedding.weight": (hf["hidden_size"], 3, hf["patch_size"], hf["patch_size"]),
        "embeddings.position_embedding.weight": (729, hf["hidden_size"]),
    }
    shapes |= {f"encoder.layers.{n}.layer_norm1.weight": (1152,) for n in range(hf["num_hidden_layers"])}
    tensors = {start + name: RawTensor(Path(), "F32", shape, 0, 0) for name, shape in shapes.items()}
    found = tower_config(tensors, None)
    config = dict(first_special_id=9, time_token_ids=list(range(11)))
    built = MultimodalConfig.from_dict({"tower": found, **config}).tower.vision
    wanted = MultimodalConfig.from_dict({"tower": {"kind": "siglip", "hf": hf}, **config}).tower.vision
    assert built.to_dict() == wanted.to_dict()


# --- pickles ---


def test_pickled_shards_give_the_tensors_of_the_safetensors_file(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for number, (name, half) in enumerate(halves.items()):
        part = {key: tensors[key] for key in half}
        torch.save(part, folder / name, _use_new_zipfile_serialization=number == 0)  # and the format of old
    places = {key: name for name, half in halves.items() for key in half}
    (folder / PICKLE_INDEX).write_text(json.dumps({"weight_map": places}))
    found = read_weights(folder, tmp_path / "workspace")
    made = {}
    for path in (tmp_path / "workspace").iterdir():
        made |= load_file(path)
    assert found.keys() == made.keys() == tensors.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in tensors.items())
    (folder / PICKLE_INDEX).write_text(json.dumps({"weight_map": {"a": "../../secret.bin"}}))
    with pytest.raises(ValueError, match="no weight file beside it"):
        read_weights(folder, tmp_path / "other")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["code", "cut short"])
def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path, kind):
    path, trace = tmp_path / PICKLE, tmp_path / "trace"
    torch.save({"a": torch.ones(1000), "b": Evil(trace) if kind == "code" else torch.ones(9)}, path)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=PICKLE):
        unpickle(path, tmp_path / "made.safetensors")
    assert not trace.exists() and not (tmp_path / "made.safetensors").exists()


NO_TENSORS = {
    "a list": [torch.ones(2)],
    "nested": {"state_dict": {"a": torch.ones(2)}},
    "a number": {"a": 1},
    "an odd name": {1: torch.ones(2)},
    "complex": {"a": torch.ones(2, dtype=torch.complex64)},
    "sparse": {"a": torch.ones(2, 2).to_sparse()},
}


@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_is_no_mapping_of_plain_tensors_is_refused(tmp_path, name):
    torch.save(NO_TENSORS[name], tmp_path / PICKLE)
    with (tmp_path / PICKLE).open("rb") as file, pytest.raises(ValueError, match=r"expected|has the dtype"):
        unpickle_child.read(file.fileno())


def test_a_view_that_repeats_numbers_does_not_fill_the_disk(tmp_path):
    giant = {"a": torch.ones(1).expand(10**12)}
    with (tmp_path / "out").open("wb") as file, pytest.raises(ValueError, match="repeats numbers"):
        unpickle_child.write(giant, file.fileno(), 2**26)
    assert (tmp_path / "out").stat().st_size == 0


def test_their_names_are_those_of_the_published_code(tiny):
    names = set(their_tensors(like_published(tiny, "qwen2").model))
    assert {
        "model.cubing.agg_frame_fn.0.weight",
        "model.cubing.proj_fn.3.bias",
        "model.cubing.thumbnail_fn.1.weight",
        "model.vision_resampler.query",
        "model.vision_resampler.kv_proj.weight",
        "model.vision_resampler.attn.in_proj_weight",
        "model.vision_resampler.ln_post.bias",
        "model.vision_resampler.proj",
        "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "lm_head.weight",
    } <= names
