"""What prepares words and pictures for a MiniMindVLM: the tokenizer and the image processor of its folder."""

import torch
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedConfig, ProcessorMixin

from quicksviewer.constants import IMAGE_MARK


class MiniMindVLMProcessor(ProcessorMixin):
    """Text with <image> for each picture, and pictures -> input_ids, attention_mask (B, T), pixel_values.

    A picture's placeholders are written as ids, so that no tokenizer can merge them. pixel_values are
    (B, N, 3, S, S) where all rows have N pictures, else (pictures, 3, S, S).
    """

    def __init__(self, image_processor=None, tokenizer=None, image_ids=None, image_special_token=None):
        super().__init__(image_processor, tokenizer)
        self.image_ids, self.image_special_token = list(image_ids), image_special_token

    @classmethod
    def from_pretrained(cls, folder, trust_remote_code: bool = False, **near):
        """Of the folder of a MiniMindVLM that has a vision tower and a tokenizer beside it."""
        config, _ = PreTrainedConfig.get_config_dict(folder, **near)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **near)
        pictures = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, **near)
        return cls(pictures, tokenizer, config["image_ids"], config["image_special_token"])

    def __call__(self, images=None, text=None, padding=False, return_tensors=None):
        """`text`: one or several; `images`: all pictures in the order of their marks. ValueError where their
        numbers differ."""
        texts = [text] if isinstance(text, str) else list(text)
        pictures = list(images) if isinstance(images, (list, tuple)) else [] if images is None else [images]
        rows, counts = zip(*map(self._ids, texts), strict=True)
        if sum(counts) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures, and the texts hold {sum(counts)} times {IMAGE_MARK}")
        batch = dict(self.tokenizer.pad({"input_ids": list(rows)}, padding=padding))
        if pictures:
            pixels = torch.as_tensor(self.image_processor(pictures, return_tensors="pt")["pixel_values"])
            is_even = len(set(counts)) == 1
            batch["pixel_values"] = pixels.unflatten(0, (len(texts), counts[0])) if is_even else pixels
        return BatchFeature(batch, tensor_type=return_tensors)

    def _ids(self, text: str) -> tuple[list[int], int]:
        """Ids of a text and how many pictures it has; placeholders that are written out count as a mark."""
        first, *rest = text.replace(self.image_special_token, IMAGE_MARK).split(IMAGE_MARK)
        ids = list(self.tokenizer(first)["input_ids"])
        for piece in rest:
            ids += [*self.image_ids, *self.tokenizer(piece, add_special_tokens=False)["input_ids"]]
        return ids, len(rest)
