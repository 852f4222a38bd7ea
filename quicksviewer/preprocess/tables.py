"""The converters, by name."""

from quicksviewer.preprocess import (
    convert_anetcaptions,
    convert_finevideo,
    convert_llavaov_multi_images,
    convert_llavaov_single_image,
    convert_llavapretrain,
    convert_llavarecap558,
    convert_longvilasft,
    convert_moviechat,
    convert_obelicts_2pretrain,
    convert_sharegpt4video,
    convert_videochat2it,
    convert_webvid400k,
    rewrite,
)
from quicksviewer.preprocess.converter import Converter
from quicksviewer.utils.registry import lookup

PUBLIC = (
    convert_obelicts_2pretrain.CONVERTER,
    convert_llavapretrain.CONVERTER,
    convert_llavarecap558.CONVERTER,
    convert_llavaov_single_image.CONVERTER,
    convert_llavaov_multi_images.CONVERTER,
    convert_finevideo.CONVERTER,
    convert_finevideo.FILTERED,
    convert_anetcaptions.CONVERTER,
    convert_sharegpt4video.CONVERTER,
    convert_webvid400k.CONVERTER,
    convert_webvid400k.CSV,
    convert_moviechat.CONVERTER,
    convert_longvilasft.CONVERTER,
    *convert_videochat2it.CONVERTERS,
)
"""Converters of public data sets."""

CONVERTERS: dict[str, Converter] = {one.name: one for one in (*PUBLIC, rewrite.FILTER, rewrite.CHANGE_PATH)}
"""Name -> converter."""


def find(name: str) -> Converter:
    """The converter of a name; ValueError names the known ones."""
    return lookup(CONVERTERS, name, "converter")
