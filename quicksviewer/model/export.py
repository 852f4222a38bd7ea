"""A checkpoint becomes a folder that plain transformers loads: adapters merged, shards joined, proven equal.

python -m quicksviewer export CHECKPOINT OUT [--model-base FOLDER] [--dtype bf16] [--masters]
python -m quicksviewer export --verify OUT
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import GenerationConfig

from quicksviewer.model.builder import OURS, read_model_type
from quicksviewer.model.chat_jinja import chat_template
from quicksviewer.model.consolidate import DTYPES, write_weights
from quicksviewer.model.delta_command import progress_of
from quicksviewer.model.export_card import write_card
from quicksviewer.model.export_probe import CLIP, FOLDER, Proof, ask_checkpoint, prove, verify, write_clip
from quicksviewer.model.export_weights import Weights, needs_shards, weights_of
from quicksviewer.model.folder_aside import folder_aside, seal_weights
from quicksviewer.model.processor import QuicksviewerProcessor
from quicksviewer.utils.manifest import MANIFEST, check
from quicksviewer.utils.registry import load_target, lookup

CHAT_TEMPLATE = "chat_template.jinja"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.verify and args.out is not None:
        parser.error("--verify takes one folder")
    if not args.verify and args.out is None:
        parser.error("say where to write: quicksviewer export CHECKPOINT OUT")
    try:
        if args.verify:
            proof = verify(args.checkpoint)
        else:
            with progress_of(f"{args.checkpoint} -> {args.out}") as report:
                proof = export(
                    args.checkpoint,
                    args.out,
                    args.model_base,
                    args.dtype,
                    args.masters,
                    args.max_shard_size,
                    report,
                )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{args.checkpoint if args.verify else args.out}: logits of {proof.tokens} tokens differ by at most "
        f"{proof.largest_difference:g} (the largest is {proof.largest_logit:.3f}); the answer is the same, "
        f"{proof.text!r}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="output folder or checkpoint of a run, read")
    parser.add_argument("out", type=Path, nargs="?", help="folder, written")
    parser.add_argument(
        "--model-base", type=Path, help="where a LoRA checkpoint's base lies, if not where it lay in training"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights; default: what the checkpoint's config says"
    )
    parser.add_argument("--masters", action="store_true", help="take the float32 copies of ZeRO-3's shards")
    parser.add_argument("--max-shard-size", type=float, default=5.0, help="of a weight file, in GB")
    parser.add_argument("--verify", action="store_true", help="ask an exported folder its question again")
    return parser


def export(
    checkpoint: Path,
    out: Path,
    base: Path | None = None,
    dtype: str | None = None,
    masters: bool = False,
    max_shard_gb: float = 5.0,
    report=lambda _: None,
) -> Proof:
    """Write `out` and prove that it is the checkpoint. ValueError for weights that are not whole, for a
    result that answers differently, for a folder that exists; then, and after a kill, nothing lies under its
    name."""
    lookup(OURS, read_model_type(checkpoint), "model type of a checkpoint that can be exported")
    if (checkpoint / MANIFEST).is_file() and not (
        masters or needs_shards(checkpoint)
    ):  # else it is done there
        check(checkpoint)
    dtype = dtype or dtype_of(checkpoint)
    weights = weights_of(checkpoint, base, masters)
    with folder_aside(out) as aside:
        files = write_weights(aside, weights.tensors, dtype, max_shard_gb, report)
        write_settings(checkpoint, aside, dtype)
        proof = _prove(checkpoint, aside, weights, base, dtype)
        write_card(aside, checkpoint, weights, dtype, files, proof)
        seal_weights(aside, out, files)
    return proof


def dtype_of(checkpoint: Path) -> str:
    """What the config says its weights are. ValueError if it does not."""
    config = json.loads((checkpoint / "config.json").read_text())
    said = config.get("dtype") or config.get("torch_dtype")
    names = {str(kind).removeprefix("torch."): name for name, (_, kind) in DTYPES.items()}
    if said not in names:
        raise ValueError(f"{checkpoint}/config.json has the dtype {said!r}; say one with --dtype")
    return names[said]


def write_settings(checkpoint: Path, folder: Path, dtype: str) -> None:
    """Everything beside the weights: config, processor, template, how to generate."""
    name = lookup(OURS, read_model_type(checkpoint), "model type")
    config = load_target(name[0]).from_pretrained(checkpoint, local_files_only=True)
    config.dtype = DTYPES[dtype][1]
    config.architectures = [name[1].rpartition(":")[2]]
    config.use_cache = True  # which training turns off
    config.save_pretrained(folder)
    processor = QuicksviewerProcessor.from_pretrained(checkpoint, local_files_only=True)
    processor.save_pretrained(folder)
    (folder / CHAT_TEMPLATE).write_text(chat_template(processor.conversation))
    GenerationConfig(
        eos_token_id=processor.stop_ids,
        pad_token_id=processor.pad_id,
        bos_token_id=config.bos_token_id,
        do_sample=False,
    ).save_pretrained(folder)


def _prove(checkpoint: Path, aside: Path, weights: Weights, base: Path | None, dtype: str) -> Proof:
    clip = aside / FOLDER / CLIP
    clip.parent.mkdir()
    write_clip(clip)
    wanted = ask_checkpoint(checkpoint, clip, DTYPES[dtype][1], base, weights.from_shards)
    return prove(aside, wanted)


if __name__ == "__main__":
    sys.exit(main())
