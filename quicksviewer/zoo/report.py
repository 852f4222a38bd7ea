"""What a model is: sizes as numbers, a summary as a table, two models side by side."""

from dataclasses import asdict, dataclass

from torch import nn

from quicksviewer.utils import modules
from quicksviewer.utils.modules import (
    get_device,
    get_model_size_mb,
    num_elements,
    parts_report,
    quantised_modules,
)

MILLION = 1e6


@dataclass(frozen=True)
class ModelInfo:
    """What `get_model_info` gives. Sizes are those of the whole model, also where its numbers are packed."""

    model_class: str
    device: str
    dtype: str
    quantised_modules: int
    """Layers in 4 or 8 bits."""
    size_mb: float
    """MiB of parameters and buffers."""
    total_parameters: int
    trainable_parameters: int
    non_trainable_parameters: int
    total_parameters_millions: float
    trainable_parameters_millions: float
    training: bool


def count_parameters(model: nn.Module) -> dict:
    """total, trainable, non_trainable, total_millions, trainable_millions; a shared parameter counts once."""
    total = modules.count_parameters(model)
    trainable = modules.count_parameters(model, trainable_only=True)
    return {
        "total": total,
        "trainable": trainable,
        "non_trainable": total - trainable,
        "total_millions": total / MILLION,
        "trainable_millions": trainable / MILLION,
    }


def get_model_info(model: nn.Module) -> dict:
    """The fields of ModelInfo as a dict."""
    counts = count_parameters(model)
    return asdict(
        ModelInfo(
            model_class=type(model).__name__,
            device=str(get_device(model)),
            dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
            quantised_modules=len(quantised_modules(model)),
            size_mb=get_model_size_mb(model),
            total_parameters=counts["total"],
            trainable_parameters=counts["trainable"],
            non_trainable_parameters=counts["non_trainable"],
            total_parameters_millions=counts["total_millions"],
            trainable_parameters_millions=counts["trainable_millions"],
            training=model.training,
        )
    )


def print_model_summary(model: nn.Module, detailed: bool = False) -> None:
    """Print class, size and place, and a row for each part; `detailed` adds the tensors that learn."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    info = get_model_info(model)
    packed = f", {info['quantised_modules']} layers quantised" if info["quantised_modules"] else ""
    counts = f"{info['total_parameters']:,} parameters, {info['trainable_parameters']:,} learn"
    place = f"{info['size_mb']:.2f} MiB of {info['dtype']}{packed} on {info['device']}"
    console.print(f"{info['model_class']}: {counts}; {place}")
    console.print(_parts_table(model))
    if detailed:
        console.print(_tensors_table(model))


def _parts_table(model: nn.Module):
    table = _table("part", "parameters", "learn", "tensors")
    names = dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters())
    for row in parts_report(model, {name: (name,) for name in names}):
        if row.tensors:
            table.add_row(row.part, f"{row.parameters:,}", f"{row.trainable:,}", str(row.tensors))
    return table


def _tensors_table(model: nn.Module):
    table = _table("tensor that learns", "shape", "numbers", "dtype")
    for name, p in model.named_parameters():
        if p.requires_grad:
            shape = " x ".join(map(str, p.shape)) or "1"
            table.add_row(name, shape, f"{num_elements(p):,}", str(p.dtype).removeprefix("torch."))
    return table


def _table(*columns: str):
    from rich.table import Table

    table = Table()
    for column in columns:
        is_name = column == columns[0]
        table.add_column(column, justify="left" if is_name else "right", overflow="fold")
    return table


def compare_models(a: nn.Module, b: nn.Module) -> dict:
    """parameter_diff and size_diff_mb, what b has more than a (below 0: less), and same_class."""
    return {
        "parameter_diff": modules.count_parameters(b) - modules.count_parameters(a),
        "size_diff_mb": get_model_size_mb(b) - get_model_size_mb(a),
        "same_class": type(a) is type(b),
    }
