"""How fast a model is, where its time goes, and what is wrong with it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

MIB = 2**20
WARM_UPS = 10


def benchmark_model_performance(
    model: torch.nn.Module, sample_inputs: dict, num_runs: int = 100
) -> dict[str, float]:
    """Time and memory of `model(**sample_inputs)`, after ten calls that do not count; printed and returned.

    latency_mean, latency_std, latency_min, latency_p50, latency_p95 in seconds. memory_mean, memory_std,
    memory_peak in bytes: by how much a call raises at its highest what is allocated on the device, on a CPU
    the resident memory of this process.
    """
    if num_runs < 1:
        raise ValueError(f"num_runs must be at least 1, got {num_runs}")
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            model(**sample_inputs)
        runs = [_measure(lambda: model(**sample_inputs), device) for _ in range(num_runs)]
    seconds, peaks = np.array(runs, dtype=np.float64).T
    figures = {
        "latency_mean": seconds.mean(),
        "latency_std": seconds.std(),
        "latency_min": seconds.min(),
        "latency_p50": np.percentile(seconds, 50),
        "latency_p95": np.percentile(seconds, 95),
        "memory_mean": peaks.mean(),
        "memory_std": peaks.std(),
        "memory_peak": peaks.max(),
    }
    figures = {name: float(value) for name, value in figures.items()}
    ms = {name.removeprefix("latency_"): 1e3 * value for name, value in figures.items()}
    print(f"{num_runs} runs on {device}")
    print(f"  latency  {ms['mean']:.2f} ± {ms['std']:.2f} ms, p50 {ms['p50']:.2f}, p95 {ms['p95']:.2f}")
    mean, std, peak = (figures[f"memory_{name}"] / MIB for name in ("mean", "std", "peak"))
    print(f"  memory   {mean:.2f} ± {std:.2f} MB above what was there, highest {peak:.2f} MB")
    return figures


def _measure(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds of a call, and bytes by which it raised the memory at its highest."""
    before = _restart_peak(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, max(0, _peak(device) - before)


def _restart_peak(device: torch.device) -> int:
    """Let the high-water mark begin at what is in use now; that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    marks = Path("/proc/self/clear_refs")
    if os.access(marks, os.W_OK):
        marks.write_text("5")  # of Linux: the mark of resident memory starts anew
    return _resident("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    """A line of /proc/self/status in bytes; elsewhere than on Linux the mark of the whole process."""
    status = Path("/proc/self/status")
    if not status.is_file():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def profile_model_execution(
    model: torch.nn.Module, sample_inputs: dict, trace: str | os.PathLike = "model_trace.json"
):
    """torch's profiler over one call: the ten operations that take most time, and a trace for a browser
    (chrome://tracing, ui.perfetto.dev). Returns the profiler. The model must have run before if its first
    call is not to be counted."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = next(model.parameters()).device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    asked = dict(activities=activities, record_shapes=True, profile_memory=True)
    with torch.inference_mode(), profile(**asked) as profiler:
        model(**sample_inputs)
    keys = {"CPU": "cpu_time_total"} | ({"GPU": "device_time_total"} if on_gpu else {})
    for name, key in keys.items():
        print(f"Ten operations that take most {name} time:")
        print(profiler.key_averages().table(sort_by=key, row_limit=10))
    profiler.export_chrome_trace(os.fspath(trace))
    print(f"trace written to {trace}")
    return profiler


def diagnose_model_issues(model, sample_input: dict) -> list[str]:
    """Look at a MiniMindVLM in six parts and print what is found; returns what is wrong. A forward pass that
    fails is a finding, not an exception."""
    problems: list[str] = []
    print("=== MiniMindVLM ===")
    for name, look in LOOKS.items():
        print(f"{name}:")
        for line, is_problem in look(model, sample_input):
            print(f"  {'!!' if is_problem else 'ok'} {line}")
            problems += [f"{name}: {line}"] * is_problem
    print(f"{len(problems)} problems" if problems else "nothing wrong was found")
    return problems


Findings = list[tuple[str, bool]]
"""Lines, and whether each is a problem."""


def _config(model, sample: dict) -> Findings:
    config = model.params
    experts = "no experts"
    if config.use_moe:
        experts = f"{config.num_experts_per_token} of {config.n_routed_experts} experts for a token"
    found = [(f"{config.hidden_size} wide, {config.num_hidden_layers} layers, {experts}", False)]
    found.append((f"vocabulary of {config.vocab_size}", False))
    ids = sample.get("input_ids")
    if ids is not None and ids.numel():
        low, high = int(ids.min()), int(ids.max())
        bad = low < 0 or high >= config.vocab_size
        found.append((f"ids of the sample from {low} to {high}" + (", outside of it" if bad else ""), bad))
        long = ids.shape[-1] > config.max_position_embeddings
        found.append((f"{ids.shape[-1]} tokens of at most {config.max_position_embeddings}", long))
    return found


def _device(model, sample: dict) -> Findings:
    homes = {str(parameter.device) for parameter in model.parameters()}
    found = [(f"parameters on {', '.join(sorted(homes))}", len(homes) > 1)]
    strangers = [
        f"{name} on {x.device}"
        for name, x in sample.items()
        if isinstance(x, torch.Tensor) and str(x.device) not in homes
    ]
    return found + ([(f"the sample is elsewhere: {', '.join(strangers)}", True)] if strangers else [])


def _vision(model, sample: dict) -> Findings:
    if getattr(model, "vision_encoder", None) is None:
        return [("no vision encoder", sample.get("pixel_values") is not None)]
    size = sum(parameter.numel() for parameter in model.vision_encoder.parameters())
    found = [
        (f"vision encoder of {size:,} parameters, {len(model.params.image_ids)} tokens a picture", False)
    ]
    pixels, ids = sample.get("pixel_values"), sample.get("input_ids")
    if pixels is None or ids is None:
        return found
    pictures = pixels.flatten(0, -4).shape[0]
    try:
        model.check_runs(ids, pictures)
    except ValueError as error:
        return [*found, (f"the text does not fit the pictures: {error}", True)]
    return [*found, (f"{pictures} pictures, each with its placeholders in the text", False)]


def _parameters(model, sample: dict) -> Findings:
    total = sum(parameter.numel() for parameter in model.parameters())
    learn = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    active = model.params.num_active_params()
    found = [
        (f"{total:,} parameters, {learn:,} learn, a token meets {active:,} of the language model's", False)
    ]
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    return found + [(f"{name} has values that are no numbers", True) for name in broken[:5]]


def _forward(model, sample: dict) -> Findings:
    was_training = model.training
    try:
        with torch.inference_mode():
            logits = model.eval()(**sample).logits
    except Exception as error:  # whatever it is, it is what this function is asked for
        return [(f"forward fails: {type(error).__name__}: {error}", True)]
    finally:
        model.train(was_training)
    counts = {word: int(test(logits).sum()) for word, test in (("NaN", torch.isnan), ("Inf", torch.isinf))}
    return [(f"logits {tuple(logits.shape)}", False)] + [
        (f"{count} logits are {word}", True) for word, count in counts.items() if count
    ]


def _memory(model, sample: dict) -> Findings:
    device = next(model.parameters()).device
    if device.type != "cuda":
        return [(f"{_resident('VmRSS') / MIB:,.0f} MB resident", False)]
    free, total = torch.cuda.mem_get_info(device)
    return [(f"{(total - free) / MIB:,.0f} of {total / MIB:,.0f} MB in use on {device}", free < 0.1 * total)]


LOOKS: dict[str, Callable[..., Findings]] = {
    "config": _config,
    "device": _device,
    "vision": _vision,
    "parameters": _parameters,
    "forward": _forward,
    "memory": _memory,
}
"""Part -> what looks at it: (model, sample) -> findings."""
