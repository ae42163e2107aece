"""What the measurements share: models, questions, timing in turns, the machine's own speed."""

import io
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from mmunlearn.data.example import Example, LazyImage
from mmunlearn.models.tiny import TinySize, build_tiny

SHAPES = {
    "demo": TinySize(vision_width=192, max_length=512),
    "llava-like": TinySize(
        image_size=336, patch_size=14, vision_width=48, vision_layers=3, width=192, layers=4, vocabulary=420, max_length=1024
    ),
}
"""llava-like has the proportions of LLaVA-1.5-7B: 576 image tokens, vision 5 % and head 4 % of the language part."""
QUESTIONS = ("Where does this person live?", "Which town was this person born in?", "What is the work of this person?")
ANSWERS = (
    "In Lima, close to the old harbour, with two brothers and a dog",
    "Oslo",
    "A painter of birds, boats and winter light who teaches children on Sundays",
    "In a small town by the sea that is known for its bells",
)
CORPUS = [
    *QUESTIONS,
    *ANSWERS,
    "USER: ASSISTANT: person number 0 1 2 3 4 5 6 7 8 9 Just give ONE letter. A B C D In Accra Hanoi",
] * 4


def build(size: TinySize) -> tuple[Any, Any]:
    """An untrained model and its processor."""
    model, processor = build_tiny(CORPUS, seed=0, size=size)
    processor.tokenizer.padding_side = "right"
    return model, processor


def picture(seed: int, side: int) -> LazyImage:
    """Noise: what is seen does not matter for the time that it takes."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(buffer, format="PNG")
    return LazyImage(key=f"noise-{seed}-{side}", where=f"noise {seed}", read=buffer.getvalue)


def questions(side: str, people: int, pixels: int) -> tuple[Example, ...]:
    """Two questions with a picture and two without about each person, as in the published train splits."""
    found = []
    for person in range(people):
        shown = picture(hash_of(side, person), pixels)
        for number in range(4):
            asked = QUESTIONS[number % 3] if number < 2 else f"{QUESTIONS[number % 3]} Person number {person}."
            answer = ANSWERS[(person + number) % len(ANSWERS)]
            image = shown if number < 2 else None
            name = f"{side}-{person}-{number}"
            found.append(Example(id=name, question=asked, answer=answer, image=image, subject=f"{side}-{person}"))
    return tuple(found)


def hash_of(side: str, person: int) -> int:
    """The same number in every process."""
    return sum(map(ord, side)) * 1000 + person


def in_turns(steps: Mapping[str, Callable[[int], float]], rounds: int, *, first: int = 0, warm_up: int = 1) -> dict[str, Any]:
    """Time several ways of the same steps, one after the other within each round, so that load falls on all alike.

    Args:
        steps: by name; each is called with the number of the step and returns its loss.
        rounds: how many are timed.
        first: the first step.
        warm_up: rounds that are not timed.

    Returns:
        By name: processor and wall seconds of a step (medians), and the losses.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(first, first + warm_up + rounds):
        names = list(steps)
        for name in names if number % 2 else names[::-1]:
            wall, processor = time.perf_counter(), time.process_time()
            losses[name].append(steps[name](number))
            if number >= first + warm_up:
                seconds[name].append((time.process_time() - processor, time.perf_counter() - wall))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()}
    return {name: {"processor_s": cpu, "wall_s": wall, "losses": losses[name]} for name, (cpu, wall) in medians.items()}


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in a piece of work, backward passes among them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Operations a second of a large matrix product: the most that this device does. Processor seconds on a CPU."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        left @ right
        _wait(device)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        for _ in range(4):
            left @ right
        _wait(device)
        best = max(best, 4 * 2 * size**3 / (clock() - start))
    return best


def copy_rate(size: int = 1 << 24) -> float:
    """Bytes a second that one thread reads and writes, from a copy that fits no cache."""
    source = torch.randn(size)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        start = time.process_time()
        target.copy_(source)
        best = max(best, 2 * 4 * size / (time.process_time() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
