"""Seconds of a training step: ours, ours with one fast path switched off, and a plain loop; the losses are compared.

OMP_NUM_THREADS=1 python -m perf.training
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from mmunlearn.config import Lora, PartTuning, TrainerArgs, Tune
from mmunlearn.config_enums import Mode, Scheduler
from mmunlearn.data.batch import Batch, Encoder, Pair
from mmunlearn.data.grouping import groups_by_picture
from mmunlearn.data.pairs import Order
from mmunlearn.methods.base import Masked, Method, Prepared, Term, TrainingData, divisible
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.methods.kl_min import KLMin
from mmunlearn.methods.mmunlearner import MMUnlearner
from mmunlearn.methods.npo import NPO
from mmunlearn.models import checkpointing
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import LLAVA, Family, bare_name
from mmunlearn.models.likelihood import answer_log_probs, sequence_sums
from mmunlearn.models.masked_lora import mask_adapter
from mmunlearn.models.prefix import can_share
from mmunlearn.models.reference import Frozen, Reference
from mmunlearn.models.saliency_mask import SaliencyMask, mask_of
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.training.engine import Replicated
from mmunlearn.training.features import as_it_is, features_of
from mmunlearn.training.loop import Plan, Windows, accumulate, training_mode, with_step_totals
from mmunlearn.training.masking import GradientMask, governed
from mmunlearn.training.optimizer import build_optimizer
from mmunlearn.training.packing import packer_for
from perf.common import SHAPES, build, in_turns, operations, questions
from perf.plain import Plain

METHODS: dict[str, Method] = {
    "grad_diff": GradDiff(),
    "npo": NPO(retain_weight=1.0),
    "kl_min": KLMin(),
    "mmunlearner": MMUnlearner(),
}
LANGUAGE = Tune(
    vision=PartTuning(mode=Mode.freeze), projector=PartTuning(mode=Mode.freeze), language=PartTuning(mode=Mode.full)
)
EVERYTHING = Tune(vision=PartTuning(mode=Mode.full), projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.full))
TUNED = {"language": LANGUAGE, "vision, projector, language": EVERYTHING}
OPTIMISATIONS = (
    "pictures encoded once",
    "tokens and pixels kept",
    "head on answers alone",
    "reference asked once",
    "questions read together",
    "modalities apart",
)
ADAPTERS = "adapters in bfloat16"
"""Concerns weights in bfloat16 alone."""
RECOMPUTE: dict[str, bool | str] = {"false": False, "selective": "selective", "true": True}
"""`trainer.args.gradient_checkpointing`."""
DRAWN = ("pictures", "questions")
"""With `trainer.args.group_by_picture` and without."""
RATE, BATCH_SIZE, PEOPLE, EPOCHS = 1e-5, 4, 4, 5
TOLERANCE = 1e-3
"""Relative, of losses: the order of summation differs."""


class HeadEverywhere(nn.Module):
    """Logits of all positions, of which the wanted ones are then taken."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, logits_to_keep: Tensor, **inputs: Any) -> Any:
        return SimpleNamespace(logits=self.model(**inputs).logits[logits_to_keep])


@dataclass(frozen=True)
class AskedAgain:
    """A term whose reference is asked in every step instead of once."""

    term: Term
    reference: nn.Module

    def __call__(self, model: nn.Module, batch: Batch | Pair, prepared: Prepared) -> Tensor:
        assert isinstance(batch, Batch)
        with torch.no_grad():
            sums = sequence_sums(answer_log_probs(self.reference, batch), batch)
        return self.term.loss(model, batch, Prepared(log_likelihoods=dict(zip(batch.ids, sums.tolist(), strict=True))))


@dataclass(frozen=True)
class Opened:
    """A model that has not been tuned yet."""

    model: Any
    processor: Any
    max_length: int
    family: Family = LLAVA

    @property
    def shares_prefix(self) -> bool:
        """Whether questions can be read together."""
        return can_share(self.family, self.model.config)


def opened(shape: str) -> Opened:
    return Opened(*build(SHAPES[shape]), SHAPES[shape].max_length)


@dataclass(frozen=True)
class Drawing:
    """What makes up a step."""

    drawn: str = "questions"
    """One of `DRAWN`."""
    batch_size: int = BATCH_SIZE
    """Questions a side, for each rank."""
    recompute: bool | str = False
    """`trainer.args.gradient_checkpointing`."""

    def order(self, data: TrainingData, ranks: int = 1) -> Order:
        """The order of a run, for both ways of the loop."""
        step_size = self.batch_size * ranks
        sides = {"num_forget": len(data.forget), "num_retain": len(data.retain), "step_size": step_size, "seed": 0}
        if self.drawn == "questions":
            return Order(**sides)
        forget, retain = groups_by_picture(data.forget), groups_by_picture(data.retain)
        return Order(**sides, forget_groups=forget, retain_groups=retain, micro_batch=self.batch_size)


class Ours:
    """The steps of `training/loop.py`, put together as `training/job.py` does; `without` switches one optimisation off."""

    def __init__(
        self,
        opened: Opened,
        method: Method,
        tune: Tune,
        data: TrainingData,
        *,
        drawing: Drawing = Drawing(),
        without: str = "",
        lora: Lora | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        assert without in ("", ADAPTERS, *OPTIMISATIONS)
        self.accelerator = accelerator or Accelerator(cpu=True)
        device = self.accelerator.device
        cache = {"cache_bytes": 0} if without == "tokens and pixels kept" else {}
        encoder = Encoder(opened.processor, max_length=opened.max_length, **cache)
        if cache:
            encoder._pictures = Forgetful()
        self.model = apply_tuning(opened.model, opened.family, tune, lora or Lora()).to(device)
        if drawing.recompute:
            checkpoint_activations(self.model, selective=drawing.recompute == "selective")
        self.args = TrainerArgs(
            learning_rate=RATE, per_device_train_batch_size=drawing.batch_size, lr_scheduler_type=Scheduler.constant
        )
        if without == "pictures encoded once":
            self.args = replace(self.args, image_cache="off")
        if without == ADAPTERS:
            multiply_as_peft_does(self.model)
        mask = mask_on(self.model) if isinstance(method, Masked) else None
        optimizer = build_optimizer(self.model, opened.family, tune, self.args)
        self.engine = Replicated(self.model, opened.family, optimizer, self.accelerator, mask)
        self.prepare_batch, _ = features_of(self.model, opened.family, data, encoder, self.args, device, sharded=False)
        started = time.process_time()
        reference = Reference(
            model=self.model,
            encoder=encoder,
            batch_size=drawing.batch_size,
            device=device,
            prepare_batch=self.prepare_batch,
            autocast=self.accelerator.autocast,
        )
        self.prepared = method.prepare(self.model, reference, data)
        apart = divisible(method) and without != "modalities apart"
        together = apart and without != "questions read together"
        packer, _ = packer_for(self.model, opened.family, encoder, divides=together, other_reference=False)
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        order, args = drawing.order(data, ranks), replace(self.args, max_steps=10_000)
        self.plan = Plan(order=order, args=args, seed=0, ranks=ranks, rank=rank, by_modality=apart, packer=packer)
        self.windows = Windows(self.plan, data, encoder)
        if self.prepare_batch is not as_it_is:
            for step in range(order.steps_per_epoch):
                [self.ready(pair) for pair in self.windows[step]]
        self.once_s = time.process_time() - started
        self.asked: nn.Module = HeadEverywhere(self.model) if without == "head on answers alone" else self.model
        self.terms: Sequence[Term] = method.terms()
        if without == "reference asked once":
            frozen = Frozen(self.model)
            again = replace(self.terms[0], loss=AskedAgain(self.terms[0], frozen))
            self.terms = (again, *self.terms[1:])

    def ready(self, pair: Pair) -> Pair:
        forget, retain = (batch and self.prepare_batch(batch) for batch in (pair.forget, pair.retain))
        return Pair(forget=forget, retain=retain)

    def step(self, number: int) -> float:
        with training_mode(self.model, number), self.accelerator.autocast():
            pairs = with_step_totals([self.ready(pair) for pair in self.windows[number]], self.accelerator)
            raw = accumulate(self.asked, self.terms, pairs, self.prepared, self.engine)
        self.engine.step(self.args.max_grad_norm)
        return sum(term.weight * raw[term.name] for term in self.terms)


def some_weights(weights: Mapping[str, Tensor]) -> SaliencyMask:
    """A mask of half of the given weights, the same for the same ones."""

    def drawn(own: Tensor) -> Tensor:
        return torch.rand(own.shape, generator=torch.Generator(own.device).manual_seed(0), device=own.device) < 0.5

    return mask_of({name: drawn(own) for name, own in weights.items()}, {"rule": "random"})


def mask_on(model: nn.Module) -> GradientMask:
    """A mask put on what is trained: on the gradients, or on the effective update of adapters."""
    covered: dict[str, Tensor] = dict(governed(model))
    if isinstance(model, PeftModel):
        layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        covered |= {bare_name(name): layer.get_base_layer().weight for name, layer in layers.items()}
    mask = some_weights(covered)
    if isinstance(model, PeftModel):
        mask_adapter(model, mask)
    return GradientMask(model, mask)


def multiply_as_peft_does(model: nn.Module) -> None:
    """Take back `bfloat_lora.multiply_in_bfloat16`."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_variant.clear()
            layer.cast_input_dtype_enabled = True


class Forgetful(dict):  # type: ignore[type-arg]
    """Keeps nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget it."""


def data_of(shape: str) -> TrainingData:
    """Forget and retain people, each with two questions with a picture and two without."""
    pixels = SHAPES[shape].image_size
    return TrainingData(forget=questions("forget", PEOPLE, pixels), retain=questions("retain", PEOPLE, pixels))


def plain(shape: str, method: str, tune: Tune, data: TrainingData, drawn: str) -> Plain:
    model, processor = build(SHAPES[shape])
    model = apply_tuning(model, LLAVA, tune, Lora())
    masks = {}
    if isinstance(METHODS[method], Masked):
        mask, trained = some_weights(governed(model)), governed(model)
        masks = {own: mask.tensor(name) for name, own in trained.items()}
    return Plain(model, processor, method, data, Drawing(drawn).order(data), RATE, masks)


def compare(shape: str, method: str, tuned: str, drawn: str, rounds: int) -> dict[str, Any]:
    """One method: ours and the plain loop in turns, from the same weights through the same questions."""
    data, tune = data_of(shape), TUNED[tuned]
    ours = Ours(opened(shape), METHODS[method], tune, data, drawing=Drawing(drawn))
    other = plain(shape, method, tune, data, drawn)
    found = in_turns({"ours": ours.step, "plain": other.step}, rounds)
    check_losses(found)
    steps = EPOCHS * ours.plan.order.steps_per_epoch
    cpu = {name: found[name]["processor_s"] for name in found}
    return {
        "shape": shape,
        "method": method,
        "tuned": tuned,
        "drawn": drawn,
        "seconds": {name: {key: value for key, value in row.items() if key != "losses"} for name, row in found.items()},
        "once_s": ours.once_s,
        "times_as_fast": cpu["plain"] / cpu["ours"],
        "times_as_fast_in_5_epochs": steps * cpu["plain"] / (ours.once_s + steps * cpu["ours"]),
        "operations": {name: operations(lambda run=run: run.step(0)) for name, run in (("ours", ours), ("plain", other))},
    }


def check_losses(found: dict[str, Any]) -> None:
    """All ways computed the same losses, step by step."""
    expected = torch.tensor(next(iter(found.values()))["losses"])
    for name, row in found.items():
        difference = (torch.tensor(row["losses"]) - expected).abs()
        # The losses of the two sides nearly cancel at first, so they are held against their size before that.
        assert bool((difference < TOLERANCE * expected.abs().clamp(min=1.0)).all()), (name, row["losses"], expected)


def attribute(shape: str, method: str, rounds: int) -> dict[str, float]:
    """How much longer a step takes with one optimisation switched off; a method whose reference is asked for likelihoods."""
    data = data_of(shape)

    def steps(without: str) -> Callable[[int], float]:
        return Ours(opened(shape), METHODS[method], LANGUAGE, data, drawing=Drawing("pictures"), without=without).step

    ways = {"ours": steps("")} | {name: steps(name) for name in OPTIMISATIONS}
    found = in_turns(ways, rounds)
    check_losses(found)
    return {name: row["processor_s"] / found["ours"]["processor_s"] for name, row in found.items() if name != "ours"}


def recomputing(shape: str, rounds: int) -> dict[str, float]:
    """How much longer a step of GradDiff takes with gradient checkpointing; for layers as narrow as these, thin is less."""
    data = data_of(shape)

    def steps(recompute: bool | str) -> Callable[[int], float]:
        return Ours(opened(shape), METHODS["grad_diff"], LANGUAGE, data, drawing=Drawing("pictures", recompute=recompute)).step

    with mock.patch.object(checkpointing, "THIN", 32):
        found = in_turns({name: steps(value) for name, value in RECOMPUTE.items()}, rounds)
    check_losses(found)
    return {name: row["processor_s"] / found["false"]["processor_s"] for name, row in found.items() if name != "false"}


def methods_in_turns(shape: str, rounds: int) -> dict[str, float]:
    """Steps of the methods, in units of a step of GradDiff."""
    data = data_of(shape)
    ways = {name: Ours(opened(shape), METHODS[name], LANGUAGE, data, drawing=Drawing("pictures")).step for name in METHODS}
    found = in_turns(ways, rounds)
    return {name: row["processor_s"] / found["grad_diff"]["processor_s"] for name, row in found.items()}


def measure(rounds: int = 4) -> dict[str, Any]:
    """Everything about training."""
    everything = "vision, projector, language"
    times = {"llava-like": rounds, "demo": 3 * rounds}
    cases = [
        compare(shape, method, tuned, drawn, number)
        for shape, number in times.items()
        for drawn in DRAWN
        for tuned in TUNED
        for method in (METHODS if tuned != everything or shape == "demo" else ["grad_diff"])
    ]
    return {
        "cases": cases,
        "off": {shape: attribute(shape, "npo", number) for shape, number in times.items()},
        "recompute": {"llava-like": recomputing("llava-like", rounds)},
        "methods": {shape: methods_in_turns(shape, times * rounds) for shape, times in (("llava-like", 1), ("demo", 5))},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for key, value in measure().items():
        print(key, value)
