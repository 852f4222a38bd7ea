"""GPU memory: read, printed, compared. Gigabytes are of 2**30 bytes."""

import torch

GB = 2**30


def get_gpu_memory_info() -> dict | None:
    """gpu_name, current_memory and max_memory (GB, reserved now, and at most until now, of this process),
    total_memory (GB) and memory_percentage (of the total, at most until now); None without CUDA."""
    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    total, most = about.total_memory / GB, torch.cuda.max_memory_reserved() / GB
    return {
        "gpu_name": about.name,
        "current_memory": round(torch.cuda.memory_reserved() / GB, 3),
        "max_memory": round(most, 3),
        "total_memory": round(total, 3),
        "memory_percentage": round(100 * most / total, 3),
    }


def print_memory_usage() -> None:
    """One line on the memory of the GPU."""
    found = get_gpu_memory_info()
    if found is None:
        print("CUDA is not available")
        return
    print(
        f"{found['gpu_name']}: {found['current_memory']} GB reserved, at most {found['max_memory']} of "
        f"{found['total_memory']} GB ({found['memory_percentage']}%)"
    )


def calculate_memory_difference(start: float, end: float, max: float) -> tuple[float, float]:
    """(GB from start to end, their percentage of max), both rounded to 3 places; 0 percent of nothing."""
    used = end - start
    return round(used, 3), round(100 * used / max, 3) if max else 0.0
