"""Samples a second, memory and share of the card's matmul rate, with the shapes of published models and random weights.

    python -m perf.gpu                              LLaVA-1.5-7B on a CUDA device
    python -m perf.gpu --shape Qwen2-VL-7B          another one of perf/shapes.py
    python -m perf.gpu --only lora --batch-size 4 16 --drawn pictures
    python -m perf.gpu --tiny                       the same on a CPU with a tiny model, to see that it works

Adapters are trained in bfloat16, all weights in float32 with bfloat16 autocast. That takes 16 bytes a weight (itself, gradient,
two moments): 113 GB for 7 billion. What does not fit is reported as such. `--layers` takes fewer layers of the language part.
Each line is one JSON object; the first one names the card. Nothing is written to disk.

    lora        every method, adapters without dropout, beside the plain loop (perf/plain.py)
    batches     GradDiff with adapters by the number of questions a side, also with PEFT's own branch in float32
    preset      GradDiff as configs/model has it: adapters with dropout
    recompute   the preset by trainer.args.gradient_checkpointing
    full        every method, the language part tuned fully
    evaluation  questions of every kind, beside the plain loop
    mask        the mask of all parts, beside a loop that copies gradients to the host
"""

import argparse
import gc
import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mmunlearn.config_enums import Mode
from perf.common import matmul_rate
from perf.gpu_work import PRESET, Bench, Case
from perf.shapes import SHAPES
from perf.training import ADAPTERS, DRAWN, METHODS, RECOMPUTE

PLAIN_SHAPE = "LLaVA-1.5-7B"
"""Whose prompts the plain loops write."""
PLAIN_METHODS = ("grad_diff", "kl_min", "npo")
"""A mask on adapters is ours alone."""
KINDS = ("image choice", "image generation", "text choice", "text generation")
Work = dict[str, Callable[[], dict[str, Any]]]


def of_methods(asked: argparse.Namespace, bench: Bench) -> Work:
    plain = PLAIN_METHODS if asked.shape == PLAIN_SHAPE else ()
    return {
        f"lora, {method}, {drawn}": partial(bench.pair if method in plain else bench.training, Case(method=method, drawn=drawn))
        for method in asked.methods
        for drawn in asked.drawn
    }


def of_batches(asked: argparse.Namespace, bench: Bench) -> Work:
    return {
        f"batches, {size}{', without ' if without else ''}{without}": partial(
            bench.training, Case(batch_size=size, without=without)
        )
        for size in asked.batch_size
        for without in ("", ADAPTERS)
    }


def of_recomputing(asked: argparse.Namespace, bench: Bench) -> Work:
    return {f"recompute, {name}": partial(bench.training, Case(lora=PRESET, recompute=how)) for name, how in RECOMPUTE.items()}


def of_kinds(asked: argparse.Namespace, bench: Bench) -> Work:
    plain = asked.shape == PLAIN_SHAPE
    return {f"evaluation, {kind}": partial(bench.asked, kind, plain=plain) for kind in KINDS}


def of_full(asked: argparse.Namespace, bench: Bench) -> Work:
    return {f"full, {method}": partial(bench.training, Case(method=method, mode=Mode.full)) for method in asked.methods}


PARTS: dict[str, Callable[[argparse.Namespace, Bench], Work]] = {
    "lora": of_methods,
    "batches": of_batches,
    "preset": lambda asked, bench: {"preset": partial(bench.training, Case(lora=PRESET))},
    "recompute": of_recomputing,
    "evaluation": of_kinds,
    "mask": lambda asked, bench: {"mask": bench.mask},
    "full": of_full,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=PLAIN_SHAPE, help="which model")
    parser.add_argument("--batch-size", type=int, nargs="*", default=[4, 16, 32], help="questions a side, of `batches`")
    parser.add_argument("--drawn", nargs="*", choices=DRAWN, default=list(DRAWN), help="pictures: as group_by_picture")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, help="which methods")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--layers", type=int, default=0, help="of the language part; 0: all")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS, help="what to measure")
    return parser.parse_args()


def main() -> None:
    """Print one JSON object a line."""
    asked = arguments()
    if not asked.tiny and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here, so nothing is measured. --tiny runs the same on a CPU, to see that it works.")
    device = torch.device("cpu" if asked.tiny else "cuda")
    half = torch.float32 if asked.tiny else torch.bfloat16
    rate = matmul_rate(device, half, 512 if asked.tiny else 8192)
    card = "CPU" if asked.tiny else torch.cuda.get_device_name(device)
    show("card", {"name": card, "torch": torch.__version__, "shape": asked.shape, "matmul_operations_per_s": rate})
    bench = Bench(shape=asked.shape, device=device, rate=rate, tiny=asked.tiny, layers=asked.layers, repeats=asked.repeats)
    failed = False
    work = {name: measured for part in asked.only for name, measured in PARTS[part](asked, bench).items()}
    for name, measured in work.items():
        try:
            show(name, measured())
        except torch.cuda.OutOfMemoryError as error:
            show(name, {"does_not_fit": str(error).split(".")[0]})
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            # What else can be measured is.
            traceback.print_exc()
            show(name, {"failed": f"{type(error).__name__}: {error}"[:300]})
            failed = True
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    sys.exit(failed)


def show(name: str, found: dict[str, Any]) -> None:
    print(json.dumps({"what": name} | found), flush=True)


if __name__ == "__main__":
    main()
