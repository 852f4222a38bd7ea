"""`from data_pipeline import DataPipeline`: that of quicksviewer.data.pipeline."""

from quicksviewer.data.pipeline import DataPipeline

__all__ = ["DataPipeline"]
