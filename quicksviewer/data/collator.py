"""Samples become one padded batch."""

from dataclasses import dataclass

from quicksviewer.utils.batching import batch_rows, join_media


@dataclass(frozen=True)
class DataCollatorForSupervisedDataset:
    """Rows padded on the right to the longest; labels of the padding are IGNORE_INDEX; media joined without
    padding."""

    pad_id: int

    def __call__(self, rows: list[dict]) -> dict:
        return batch_rows(rows, self.pad_id) | join_media(rows)
