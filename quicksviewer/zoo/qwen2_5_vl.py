"""What prepares words and pictures for Qwen2.5-VL, also where torchvision is missing.

transformers builds its processor only with torchvision, which its part for videos needs. The one here takes
pictures and texts, gives the same tensors, and refuses videos. Both read and write the same files.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

OFFICIAL = "Qwen2_5_VLProcessor"
VIDEO_FILE = "video_preprocessor_config.json"


class Qwen2_5_VLPictureProcessor(ProcessorMixin):
    """Text with <|image_pad|> for each picture, and pictures -> input_ids, attention_mask, mm_token_type_ids
    (B, T), pixel_values (sum of patches, D), image_grid_thw (pictures, 3)."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, video_settings=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.video_settings = video_settings
        self.image_token = getattr(tokenizer, "image_token", None) or "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    @classmethod
    def from_pretrained(cls, folder, trust_remote_code: bool = False, **near):
        """transformers' own processor where torchvision is, this one elsewhere."""
        if find_spec("torchvision"):
            from transformers import Qwen2_5_VLProcessor

            return Qwen2_5_VLProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, **near)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **near)
        pictures = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, **near)
        return cls(pictures, tokenizer, video_settings=_video_settings(folder))

    def __call__(self, images=None, text=None, videos=None, audio=None, return_tensors=None, **options):
        """As transformers' processor of this model for texts and pictures. `options`: the tokenizer's."""
        if videos is not None or audio is not None:
            raise ModuleNotFoundError(
                "videos for Qwen2.5-VL need torchvision on a machine with CUDA: "
                "pip install 'quicksviewer[gpu]'"
            )
        texts, pictures = [text] if isinstance(text, str) else list(text or []), list(_flat(images))
        held = sum(t.count(self.image_token) for t in texts)
        if held != len(pictures):
            raise ValueError(f"{len(pictures)} pictures, and the texts hold {held} times {self.image_token}")
        seen = self.image_processor(images=pictures, return_tensors=return_tensors) if pictures else {}
        counts = [int(g[0]) * int(g[1]) * int(g[2]) for g in seen.get("image_grid_thw", [])]
        area = self.image_processor.merge_size**2
        words = self.tokenizer(self._widened(texts, [c // area for c in counts]), **options)
        is_picture = [[int(i == self.image_token_id) for i in row] for row in words["input_ids"]]
        words["mm_token_type_ids"] = is_picture
        return BatchFeature({**words, **seen}, tensor_type=return_tensors)

    def _widened(self, texts: list[str], counts: list[int]) -> list[str]:
        """Each mark of a picture as many times as the picture has tokens."""
        left, wide = iter(counts), []
        for text in texts:
            first, *rest = text.split(self.image_token)
            wide.append(first + "".join(self.image_token * next(left) + piece for piece in rest))
        return wide

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"]

    def to_dict(self) -> dict:
        """As transformers' processor would write itself, with the settings for videos that were read."""
        plain = super().to_dict()
        plain.pop("video_settings", None)
        if self.video_settings:
            plain["video_processor"] = self.video_settings
        return plain | {"processor_class": OFFICIAL}


def _flat(images):
    """Pictures of a picture, a list, or a list of lists; None where there are none."""
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from _flat(image)
    elif images is not None:
        yield images


def _video_settings(folder) -> dict | None:
    """What a checkpoint folder says of videos, kept so that saving does not lose it."""
    for name, key in (("processor_config.json", "video_processor"), (VIDEO_FILE, None)):
        path = Path(folder) / name
        if path.is_file():
            found = json.loads(path.read_text())
            found = found.get(key) if key else found
            if found:
                return found
    return None
