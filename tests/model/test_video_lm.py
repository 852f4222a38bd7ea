"""The whole model, over every backbone: gradients, padding, caching, saving, mixed media."""

import copy

import pytest
import torch
from tiny_world import BACKBONES, TOWERS, fresh, text_row, video_row, videos

from quicksviewer.constants import IMAGE_MARK
from quicksviewer.conversation import Turn
from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.model.builder import load_pretrained_model
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.optim import part_of
from quicksviewer.train.stages import STAGES, trainable_prefixes
from quicksviewer.utils.modules import train_only


def collate(loaded, rows):
    return DataCollatorForSupervisedDataset(loaded.processor.pad_id)(rows)


@pytest.mark.parametrize("content", ["video", "text"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_gradients_to_exactly_its_parts(tiny, stage, backbone, content):
    loaded = fresh(tiny, backbone)
    model = train_only(loaded.model, trainable_prefixes(loaded.model, stage)).train()
    row = video_row(loaded, videos(tiny)[0]) if content == "video" else text_row(loaded)
    out = model(**collate(loaded, [row]))
    (out.loss + 0.001 * (out.gate_penalty if out.gate_penalty is not None else 0)).backward()
    named = dict(model.named_parameters())
    with_gradient = {name for name, p in named.items() if p.grad is not None}
    assert with_gradient == {name for name in named if part_of(name, PARTS) in STAGES[stage]}
    if content == "video":
        moved = {part_of(name, PARTS) for name in with_gradient if named[name].grad.abs().sum() > 0}
        assert moved == set(STAGES[stage]) - {"projector"}  # identity has no parameters


@pytest.mark.parametrize("backbone", BACKBONES)
def test_text_only_logits_are_those_of_the_untouched_language_model(tiny, backbone):
    from transformers import AutoModelForCausalLM

    loaded = fresh(tiny, backbone)
    plain = AutoModelForCausalLM.from_pretrained(tiny / backbone, dtype=torch.float32).eval()
    ids = torch.tensor([text_row(loaded)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded.model.eval()(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_equals_loaded(tiny, tmp_path, backbone, tower):
    loaded = fresh(tiny, backbone, tower)
    batch = collate(loaded, [video_row(loaded, videos(tiny)[0]), text_row(loaded)])
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = load_pretrained_model(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(again.model(**batch).logits, loaded.model.eval()(**batch).logits)
    assert again.processor.mm == loaded.processor.mm and again.processor.template == loaded.processor.template
    assert again.processor.media == loaded.processor.media


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_lora_checkpoint_is_complete(tiny, tmp_path, backbone):
    from peft import LoraConfig, get_peft_model

    from quicksviewer.train.checkpoint import save_extras
    from quicksviewer.train.lora import lora_targets

    loaded = fresh(tiny, backbone)
    targets = lora_targets(loaded.model)
    model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=targets, task_type=None))
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter) if parameter.requires_grad else 0
    loaded.model.vision_resampler.query.data += 0.1
    batch = collate(loaded, [video_row(loaded, videos(tiny)[0])])
    model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    save_extras(model, tmp_path)
    with torch.no_grad():
        before = model.eval()(**batch).logits
        after = load_pretrained_model(str(tmp_path)).model(**batch).logits
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cached_generation_equals_uncached_and_a_loop_of_forwards(tiny, backbone):
    loaded = fresh(tiny, backbone)
    model = loaded.model.eval()
    video = loaded.processor.load_video(videos(tiny)[0])
    turns = [Turn("user", "<video>\nWhat happens when?")]
    batch = loaded.processor.batch([loaded.processor.encode_turns(turns, [video], generation=True)])
    settings = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    cached = model.generate(**copy.deepcopy(batch), use_cache=True, **settings)
    uncached = greedy(model, batch, 8)
    assert cached.shape[1] == batch["input_ids"].shape[1] + 8
    assert torch.equal(cached, uncached)


def greedy(model, batch, steps):
    """Generation as its definition: the whole sequence again for every token."""
    ids, eos = batch["input_ids"], model.generation_config.eos_token_id
    media = {key: batch[key] for key in ("pixel_values", "frame_times", "medium_frames", "medium_is_video")}
    for _ in range(steps):
        with torch.no_grad():
            logits = model(input_ids=ids, **media, use_cache=False).logits[:, -1]
        logits[:, eos] = -torch.inf  # min_new_tokens forbids the end
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def test_a_batch_equals_its_rows_with_any_mix_of_media(tiny):
    loaded = fresh(tiny)
    model, processor = loaded.model.eval(), loaded.processor
    files = videos(tiny)
    image = processor.load_image(tiny / "data/images/00000_0.png")
    video, other = processor.load_video(files[0]), processor.load_video(files[1])
    dialogues = [
        (
            [Turn("user", "<video>\nand <image> and <video>?"), Turn("assistant", "red")],
            [video, image, other],
        ),
        ([Turn("user", "Which is first?"), Turn("assistant", "red")], []),
        ([Turn("user", f"{IMAGE_MARK}\nWhat is seen?"), Turn("assistant", "blue")], [image]),
    ]
    rows = [processor.encode_turns(turns, media) for turns, media in dialogues]
    with torch.no_grad():
        together = model(**collate(loaded, rows)).logits
        for row, logits in zip(rows, together, strict=True):
            alone = model(**collate(loaded, [row])).logits[0]
            assert torch.allclose(logits[: len(alone)], alone, atol=2e-5)


def test_a_video_of_one_frame_works(tiny):
    loaded = fresh(tiny)
    video = loaded.processor.with_media(max_frames=1).load_video(videos(tiny)[0])
    assert len(video.pixels) == 1
    row = loaded.processor.encode_turns([Turn("user", "<video>\nWhat?"), Turn("assistant", "red")], [video])
    out = loaded.model.train()(**collate(loaded, [row]))
    out.loss.backward()
    assert torch.isfinite(out.loss)


def test_plain_times_equal_a_prompt_without_the_zeros(tiny):
    """Masking a leading zero must be the same as never having written it."""
    loaded = fresh(tiny, layout={"time_style": "plain", "time_digits": 3, "time_decimals": 1})
    tight = fresh(tiny, layout={"time_style": "plain", "time_digits": 1, "time_decimals": 1})
    tight.model.load_state_dict(loaded.model.state_dict())
    rows = []
    for one in (loaded, tight):
        video = one.processor.load_video(videos(tiny)[0], end=min(8.0, len(videos(tiny))))
        turns = [Turn("user", "<video>\nWhat?"), Turn("assistant", "red circle")]
        rows.append(collate(one, [one.processor.encode_turns(turns, [video])]))
    assert rows[0]["input_ids"].shape[1] > rows[1]["input_ids"].shape[1]
    with torch.no_grad():
        long, short = (
            x.model.eval()(**row).logits[0, -4:] for x, row in zip((loaded, tight), rows, strict=True)
        )
    assert torch.allclose(long, short, atol=1e-5)


def test_a_frozen_tower_leaves_no_graph_and_keeps_no_layers(tiny):
    loaded = fresh(tiny)
    loaded.model.vision_tower.requires_grad_(False)
    tokens = loaded.model.vision_tower(loaded.processor.load_video(videos(tiny)[0]).pixels)
    assert tokens.grad_fn is None and not tokens.requires_grad


def test_marks_and_media_must_agree(tiny):
    loaded = fresh(tiny)
    with pytest.raises(ValueError, match="marks"):
        loaded.processor.encode_turns([Turn("user", "<video>\nWhat?")], [], generation=True)
