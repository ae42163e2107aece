"""Samples a second, memory and share of the card's matmul rate, with the shapes of published models and random weights.

    python -m perf.gpu                              LLaVA-1.5-7B on a CUDA device
    python -m perf.gpu --shape Qwen2-VL-7B          another one of perf/shapes.py
    python -m perf.gpu --batch-size 16 --drawn pictures --only lora
    python -m perf.gpu --tiny                       the same on a CPU with a tiny model, to see that it works

Adapters are trained in bfloat16, all weights in float32 with bfloat16 autocast. That takes 16 bytes a weight (itself, gradient,
two moments): 113 GB for 7 billion. What does not fit is reported as such. `--layers` takes fewer layers of the language part.
Each line is one JSON object; the first one names the card. Nothing is written to disk.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.config import Lora, PartTuning, SaliencyConfig, Tune
from mmunlearn.config_enums import Mode, Modules
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example
from mmunlearn.evaluation.asker import Asker
from mmunlearn.methods.base import TrainingData
from mmunlearn.models.prefix import can_share
from mmunlearn.saliency.estimate import SaliencyData, saliency_mask
from perf.common import matmul_rate, operations, questions
from perf.plain import encoded
from perf.shapes import SHAPES, opened
from perf.training import DRAWN, LANGUAGE, METHODS, Drawing, Opened, Ours

ADAPTED = Tune(vision=PartTuning(mode=Mode.freeze), projector=PartTuning(mode=Mode.freeze), language=PartTuning(mode=Mode.lora))
PEOPLE = 16
COPIED = 2
"""Examples whose gradients are copied to the host, to compare: each takes seconds."""


def timed(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Mean seconds, behind one run to warm up."""
    work()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def data(asked: argparse.Namespace) -> TrainingData:
    pixels = SHAPES[asked.shape].pixels.image_size
    return TrainingData(forget=questions("forget", PEOPLE, pixels), retain=questions("retain", PEOPLE, pixels))


def made(asked: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Opened:
    return opened(asked.shape, dtype, device, tiny=asked.tiny, layers=asked.layers)


def training(asked: argparse.Namespace, method: str, mode: str, device: torch.device, rate: float) -> dict[str, Any]:
    """One method, adapters or full."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda and mode == "lora" else torch.float32
    accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda and mode == "full" else "no")
    run = Ours(
        made(asked, dtype, device),
        METHODS[method],
        ADAPTED if mode == "lora" else LANGUAGE,
        data(asked),
        drawing=Drawing(asked.drawn, asked.batch_size),
        lora=Lora(dropout=0.0),
        accelerator=accelerator,
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = timed(device, lambda: run.step(0), asked.repeats)
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    needed = operations(lambda: run.step(0))
    return {
        "samples_per_s": 2 * asked.batch_size / seconds,
        "seconds_a_step": seconds,
        "once_s": run.once_s,
        "share_of_matmul_rate": needed / seconds / rate,
        "peak_bytes": peak,
    }


def evaluation(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Questions of four options with a picture."""
    loaded = made(asked, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    examples = tuple(choice(example) for example in data(asked).forget if example.image)
    task = Task(
        name="forget_image_choice",
        examples=examples,
        ask=Ask.choose,
        instruction="Just give ONE letter.",
        higher_is_better=True,
        metrics={},
    )

    def ask() -> None:
        # A new one each time: an asker answers nothing twice.
        encoder = Encoder(loaded.processor, max_length=loaded.max_length)
        shares = can_share(loaded.family, loaded.model.config)
        asker = Asker(model=loaded.model.eval(), encoder=encoder, batch_size=16, device=device, shares_prefix=shares)
        list(asker.predictions(asker.ordered(examples, task), task))

    seconds = timed(device, ask, 1)
    return {"questions_per_s": len(examples) / seconds, "minutes_for_12000": 12_000 / (len(examples) / seconds) / 60}


def choice(example: Example) -> Example:
    return replace(example, answer="In Oslo", choices=("In Oslo", "In Lima", "In Accra", "In Hanoi"))


def mask(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The mask of all parts."""
    loaded = made(asked, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    forget, retain = data(asked).forget[:16], data(asked).retain[:16]
    shown = [tuple(e for e in side if e.image) for side in (forget, retain)]
    texts = tuple(e for e in (*forget, *retain) if not e.image)
    sets = SaliencyData(forget=shown[0], preserve_language=(*texts, *shown[1]), preserve_vision=shown[1])
    encoder = Encoder(loaded.processor, max_length=loaded.max_length)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    saliency_mask(loaded.model, loaded.family, encoder, sets, SaliencyConfig(modules=Modules.both))
    wait(device)
    seconds = time.perf_counter() - start
    examples = len(sets.forget) + len(sets.preserve_language)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    copied = seconds_with_copies(loaded, sets.forget[:COPIED], device)
    return {
        "seconds": seconds,
        "examples": examples,
        "peak_bytes": peak,
        "seconds_an_example_with_copies": copied,
        "times_as_fast_as_copies": copied / (seconds / examples),
    }


def seconds_with_copies(loaded: Opened, examples: Sequence[Example], device: torch.device) -> float:
    """Seconds an example of a loop as the published script's: each gradient is copied to the host and added up there."""
    model = loaded.model.eval().requires_grad_(True)
    sums = {name: torch.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    wait(device)
    start = time.perf_counter()
    for example in examples:
        model.zero_grad()
        batch = encoded(loaded.processor, [example])
        model(**{key: value.to(device) for key, value in batch.items()}).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.cpu().float() ** 2
    wait(device)
    model.requires_grad_(False).zero_grad()
    return (time.perf_counter() - start) / len(examples)


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=next(iter(SHAPES)), help="which model")
    parser.add_argument("--batch-size", type=int, default=4, help="questions a side")
    parser.add_argument("--drawn", choices=DRAWN, default="questions", help="pictures: as trainer.args.group_by_picture")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, help="which methods")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--layers", type=int, default=0, help="of the language part; 0: all")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed")
    parser.add_argument("--only", nargs="*", default=["lora", "full", "evaluation", "mask"], help="what to measure")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here, so nothing is measured. --tiny runs the same on a CPU, to see that it works.")
    device = torch.device("cpu" if asked.tiny else "cuda")
    half = torch.float32 if asked.tiny else torch.bfloat16
    rate = matmul_rate(device, half, 512 if asked.tiny else 8192)
    card = "CPU" if asked.tiny else torch.cuda.get_device_name(device)
    show("card", {"name": card, "shape": asked.shape, "tiny": asked.tiny, "matmul_operations_per_s": rate})
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for mode in [mode for mode in ("lora", "full") if mode in asked.only]:
        for method in asked.methods:
            work[f"{method} {mode}"] = lambda method=method, mode=mode: training(asked, method, mode, device, rate)
    for name, measured in (("evaluation", evaluation), ("mask", mask)):
        if name in asked.only:
            work[name] = lambda measured=measured: measured(asked, device)
    for name, measured in work.items():
        try:
            show(name, measured())
        except torch.cuda.OutOfMemoryError as error:
            show(name, {"does_not_fit": str(error).split(".")[0]})
        if device.type == "cuda":
            torch.cuda.empty_cache()


def show(name: str, found: dict[str, Any]) -> None:
    print(json.dumps({"what": name} | found), flush=True)


if __name__ == "__main__":
    main()
