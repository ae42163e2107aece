"""What `perf/gpu.py` measures: a training step, questions asked, a mask. Each beside the way of the published scripts."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from mmunlearn.config import Lora, PartTuning, SaliencyConfig, Tune
from mmunlearn.config_enums import Mode, Modules
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example
from mmunlearn.methods.base import TrainingData
from mmunlearn.models.fingerprints import model_fingerprint
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.saliency.estimate import SaliencyData, saliency_mask
from perf.common import operations, questions
from perf.evaluation import BATCH_SIZE, Numbers, by_asker, by_plain_loop, tasks
from perf.plain import Plain, encoded
from perf.shapes import SHAPES, opened
from perf.training import LANGUAGE, METHODS, RATE, Drawing, Opened, Ours, multiply_as_peft_does

ADAPTED = Tune(vision=PartTuning(mode=Mode.freeze), projector=PartTuning(mode=Mode.freeze), language=PartTuning(mode=Mode.lora))
NO_DROPOUT, PRESET = Lora(dropout=0.0), Lora()
PEOPLE, FEW_PEOPLE = 16, 2
"""A side; those that the plain loop is asked about."""
COPIED = 2
"""Examples whose gradients are copied to the host, to compare: each takes seconds."""
ALIKE = 0.05
"""By how much losses in bfloat16 may differ between two orders of summation, relative to their size or to 1."""


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Mean seconds, behind one run to warm up."""
    work()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training step."""

    method: str = "grad_diff"
    mode: Mode = Mode.lora
    lora: Lora = field(default_factory=lambda: NO_DROPOUT)
    batch_size: int = 4
    """Questions a side."""
    drawn: str = "questions"
    without: str = ""
    """See `Ours`."""
    recompute: bool | str = False
    """`trainer.args.gradient_checkpointing`."""

    @property
    def tune(self) -> Tune:
        return ADAPTED if self.mode is Mode.lora else LANGUAGE


@dataclass(kw_only=True)
class Bench:
    """One shape on one device; its model in half precision is made once and lent to every measurement."""

    shape: str
    device: torch.device
    rate: float
    """Operations a second of a large matrix product in bfloat16."""
    tiny: bool = False
    layers: int = 0
    repeats: int = 5
    _model: list[Opened] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def made(self, dtype: torch.dtype) -> Opened:
        return opened(self.shape, dtype, self.device, tiny=self.tiny, layers=self.layers)

    def half(self) -> Opened:
        """The model in half precision, as it was made."""
        if not self._model:
            self._model.append(self.made(torch.bfloat16 if self.cuda else torch.float32))
        model = self._model[0].model.eval().requires_grad_(False)
        model.zero_grad()
        return self._model[0]

    def data(self) -> TrainingData:
        pixels = SHAPES[self.shape].pixels.image_size
        return TrainingData(forget=questions("forget", PEOPLE, pixels), retain=questions("retain", PEOPLE, pixels))

    @contextmanager
    def memory(self) -> Iterator[dict[str, Any]]:
        """The most that was allocated meanwhile."""
        found: dict[str, Any] = {}
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        found["peak_bytes"] = torch.cuda.max_memory_allocated(self.device) if self.cuda else 0
        found["reserved_bytes"] = torch.cuda.max_memory_reserved(self.device) if self.cuda else 0

    def training(self, case: Case) -> dict[str, Any]:
        """One method, adapters or full."""
        full = case.mode is Mode.full
        if full:
            self._model.clear()  # it would lie beside this one
        model = self.made(torch.float32) if full else self.half()
        accelerator = Accelerator(cpu=not self.cuda, mixed_precision="bf16" if self.cuda and full else "no")
        drawing = Drawing(case.drawn, case.batch_size, case.recompute)
        given = {"drawing": drawing, "lora": case.lora, "without": case.without}
        try:
            with self.memory() as memory:
                run = Ours(model, METHODS[case.method], case.tune, self.data(), accelerator=accelerator, **given)
                first = run.step(0)
                seconds = timed(self.device, lambda: run.step(0), self.repeats)
            needed = operations(lambda: run.step(0))
            return {
                "samples_per_s": 2 * case.batch_size / seconds,
                "seconds_a_step": seconds,
                "once_s": run.once_s,
                "loss": first,
                "share_of_matmul_rate": needed / seconds / self.rate,
                **memory,
            }
        finally:
            bare(model)

    def plain_training(self, case: Case) -> dict[str, Any]:
        """The same step as the published scripts take it: PEFT's adapters as they are, a second model as reference."""
        model = self.half()
        try:
            with self.memory() as memory:
                adapted: Any = apply_tuning(model.model, model.family, case.tune, case.lora)
                multiply_as_peft_does(adapted)
                order = Drawing(case.drawn, case.batch_size).order(self.data())
                run = Plain(adapted, model.processor, case.method, self.data(), order, RATE, {})
                first = run.step(0)
                seconds = timed(self.device, lambda: run.step(0), self.repeats)
            return {"plain_seconds_a_step": seconds, "plain_loss": first, **{f"plain_{k}": v for k, v in memory.items()}}
        finally:
            bare(model)

    def pair(self, case: Case) -> dict[str, Any]:
        """Ours and the plain loop, one behind the other from the same weights."""
        ours, plain = self.training(case), self.plain_training(case)
        alike = abs(ours["loss"] - plain["plain_loss"]) <= ALIKE * max(1.0, abs(plain["plain_loss"]))
        return {**ours, **plain, "times_as_fast": plain["plain_seconds_a_step"] / ours["seconds_a_step"], "alike": alike}

    def asked(self, kind: str, *, plain: bool) -> dict[str, Any]:
        """Questions of one kind; see `perf/evaluation.py`."""
        loaded, pixels = self.half(), SHAPES[self.shape].pixels.image_size
        model, processor = loaded.model, loaded.processor
        many, few = (tasks(people, pixels)[kind] for people in (PEOPLE, FEW_PEOPLE))
        by_asker(model, processor, few, shares_prefix=loaded.shares_prefix)
        wait(self.device)
        with self.memory() as memory:
            start = time.perf_counter()
            found = by_asker(model, processor, many, shares_prefix=loaded.shares_prefix)
            wait(self.device)
            seconds = (time.perf_counter() - start) / len(found)
        result = {
            "questions_per_s": 1 / seconds,
            "minutes_for_12000": 12_000 * seconds / 60,
            "batch_size": BATCH_SIZE,
            **memory,
        }
        if not plain:
            return result
        start = time.perf_counter()
        loop = by_plain_loop(model, processor, few)
        wait(self.device)
        slow = (time.perf_counter() - start) / len(loop)
        return {**result, "plain_questions_per_s": 1 / slow, "times_as_fast": slow / seconds, **compared(found, loop)}

    def mask(self) -> dict[str, Any]:
        """The mask of all parts, beside a loop that copies each gradient to the host."""
        loaded, data = self.half(), self.data()
        forget, retain = data.forget[:PEOPLE], data.retain[:PEOPLE]
        shown = [tuple(e for e in side if e.image) for side in (forget, retain)]
        texts = tuple(e for e in (*forget, *retain) if not e.image)
        sets = SaliencyData(forget=shown[0], preserve_language=(*texts, *shown[1]), preserve_vision=shown[1])
        encoder = Encoder(loaded.processor, max_length=loaded.max_length)
        start = time.perf_counter()
        model_fingerprint(loaded.model)
        reading = time.perf_counter() - start
        with self.memory() as memory:
            start = time.perf_counter()
            saliency_mask(loaded.model, loaded.family, encoder, sets, SaliencyConfig(modules=Modules.both))
            wait(self.device)
            seconds = time.perf_counter() - start
        examples = len(sets.forget) + len(sets.preserve_language)
        copied = seconds_with_copies(loaded, sets.forget[:COPIED], self.device)
        return {
            "seconds": seconds,
            "of_which_the_model_is_read_for_its_fingerprint": reading,
            "examples": examples,
            "seconds_an_example": (seconds - reading) / examples,
            "seconds_an_example_with_copies": copied,
            "times_as_fast_as_copies": copied / ((seconds - reading) / examples),
            **memory,
        }


def bare(loaded: Opened) -> None:
    """Take off again what `Ours` and `Plain` have put into the model's layers: adapters, and gradient checkpointing."""
    layers: list[tuple[nn.Module, str, Any]] = []
    for module in loaded.model.modules():
        layers += [(module, name, child) for name, child in module.named_children() if hasattr(child, "base_layer")]
    for module, name, child in layers:
        setattr(module, name, child.base_layer)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in vars(loaded.model):
            delattr(loaded.model, name)
    loaded.model.gradient_checkpointing_disable()
    assert not isinstance(loaded.model, PeftModel)


def compared(found: Numbers, loop: Numbers) -> dict[str, Any]:
    """How far the answers of both ways are apart. Weights are random, so that words hang by a hair in half precision."""
    pairs = [(one, other) for name in loop for one, other in zip(found[name][2], loop[name][2], strict=True)]
    off = max(abs(one - other) / max(1.0, abs(other)) for one, other in pairs)
    same = sum(found[name][0] == loop[name][0] for name in loop) / len(loop)
    return {"largest_relative_difference": off, "alike": off < ALIKE, "same_words": same}


def seconds_with_copies(loaded: Opened, examples: Sequence[Example], device: torch.device) -> float:
    """Seconds an example of a loop as the published script's: each gradient is copied to the host and added up there."""
    model = loaded.model.eval().requires_grad_(True)
    sums = {name: torch.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    for total in sums.values():
        total.add_(0)  # the memory is there before the clock runs
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
