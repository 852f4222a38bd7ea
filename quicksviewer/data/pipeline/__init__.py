"""The DataPipeline: pictures with texts, from one YAML file to batches. docs/pipeline.md tells how.

from quicksviewer.data.pipeline import DataPipeline
pipeline = DataPipeline("configs/pipeline/vqa.yaml")
pipeline.setup()
for batch in pipeline.get_train_dataloader(): ...
"""

from importlib import import_module

_HOME = {"DataPipeline": "pipeline", "PipelineConfig": "config", "PipelineDataset": "dataset"}
"""Name -> module of this folder that defines it; loaded on first use."""
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
