"""The training loop. Methods say what is minimised; everything else happens here.

A step's losses are sums over supervised tokens (or sequences) divided by the totals of the whole step, so that splitting
the step over micro-batches, accumulation or ranks changes no gradient.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmunlearn.config import TrainerArgs
from mmunlearn.config_enums import Scheduler
from mmunlearn.data.batch import Batch, Encoder, Pair, collate
from mmunlearn.data.example import Example
from mmunlearn.data.pairs import Item, Order, split_step
from mmunlearn.errors import RunError, StoppedError
from mmunlearn.methods.base import Method, Prepared, Term, TrainingData
from mmunlearn.progress import progress
from mmunlearn.training.engine import Engine
from mmunlearn.training.logging import StepLog
from mmunlearn.training.masking import Masking
from mmunlearn.training.optimizer import rate_factor, set_learning_rates, warmup_steps
from mmunlearn.training.packing import Packer
from mmunlearn.training.stopping import outlive_stop_requests
from mmunlearn.training.watching import NOT_FINITE, require_finite, watch

NOT_MOVED = (
    "No step had a gradient, so nothing was trained: do the questions use the parts that are tuned? (model.tune.…; questions "
    "without a picture use neither vision nor projector)"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides the sequence of steps."""

    order: Order
    args: TrainerArgs
    seed: int
    ranks: int = 1
    rank: int = 0
    by_modality: bool = False
    """Divide each micro-batch into questions with a picture and without: a picture takes hundreds of tokens, and a short
    text beside it would be padded to as many. For methods that are `divisible`, and engines whose ranks may differ in their
    number of forward passes."""
    packer: Packer | None = None
    """Lets the questions of a side share what they begin with, where that pays, in place of `by_modality`; needs the same of
    method and engine."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        whole = max(1, round(self.args.num_train_epochs * self.order.steps_per_epoch))
        return whole if self.args.max_steps < 0 else self.args.max_steps


class Windows(Dataset[list[Pair]]):
    """One item is one optimizer step: this rank's micro-batches of it."""

    def __init__(self, plan: Plan, data: TrainingData, encoder: Encoder) -> None:
        """Remember where the examples are."""
        self.plan, self.data, self.encoder = plan, data, encoder

    def __len__(self) -> int:
        return self.plan.total_steps

    def __getitem__(self, step: int) -> list[Pair]:
        parts = split_step(
            self.plan.order.step(step),
            micro_batches=self.plan.args.gradient_accumulation_steps,
            ranks=self.plan.ranks,
            rank=self.plan.rank,
            length=None if self.plan.order.micro_batch else self._length,
        )
        return [pair for items in parts for pair in self._pairs(items)]

    def _pairs(self, items: Sequence[Item]) -> list[Pair]:
        """A micro-batch; its questions with a picture and those without, if they are computed apart."""
        forget = [self.data.forget[index] for item in items for index in item.forget]
        retain = [self.data.retain[index] for item in items for index in item.retain]
        if not self.plan.by_modality:
            return [Pair(forget=self._batch(forget), retain=self._batch(retain))]
        return [Pair(forget=f, retain=r) for f, r in zip_longest(self._divided(forget), self._divided(retain))]

    def _divided(self, examples: Sequence[Example]) -> list[Batch]:
        """One side of a micro-batch: packed, or its questions with a picture and those without."""
        if self.plan.packer is not None and examples:
            packed = self.plan.packer.batch(examples, [self.encoder(example) for example in examples])
            if packed is not None:
                return [packed]
        kinds = [[example for example in examples if (example.image is None) == text] for text in (False, True)]
        return [batch for batch in map(self._batch, kinds) if batch is not None]

    def _batch(self, examples: Sequence[Example]) -> Batch | None:
        if not examples:
            return None
        encoded = [self.encoder(example) for example in examples]
        return collate(encoded, pad_token_id=self.encoder.pad_token_id)

    def _length(self, item: Item) -> int:
        """Tokens of the longest sequence of an item's side that decides the padding."""
        examples = [self.data.forget[index] for index in item.forget] or [self.data.retain[index] for index in item.retain]
        return max(len(self.encoder(example).labels) for example in examples)


def with_step_totals(window: Sequence[Pair], accelerator: Accelerator) -> list[Pair]:
    """Give every batch the totals of the whole step, all micro-batches and ranks, and move it to the device."""
    sides = {"forget": [pair.forget for pair in window], "retain": [pair.retain for pair in window]}
    own = [
        [sum(batch.num_tokens for batch in batches if batch), sum(len(batch.ids) for batch in batches if batch)]
        for batches in sides.values()
    ]
    totals = accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device), reduction="sum").tolist()
    filled = {
        side: [
            replace(batch.to(accelerator.device), step_tokens=tokens, step_sequences=sequences) if batch else None
            for batch in sides[side]
        ]
        for side, (tokens, sequences) in zip(sides, totals, strict=True)
    }
    return [Pair(forget=forget, retain=retain) for forget, retain in zip(filled["forget"], filled["retain"], strict=True)]


def accumulate(
    model: nn.Module, terms: Sequence[Term], window: Sequence[Pair], prepared: Prepared, engine: Engine
) -> dict[str, float]:
    """Forward and backward of every term on every micro-batch, one graph alive at a time.

    Returns:
        Each term's raw (unweighted) share of the step, summed over this rank's micro-batches; terms that met no batch of
        their side are left out.

    Raises:
        RunError: a term is not finite; names the term and the examples.
    """
    found: list[tuple[Term, Batch | Pair, Tensor]] = []
    engine.begin(sum(term.applies_to(pair) is not None for pair in window for term in terms))
    for pair in window:
        for term in terms:
            batch = term.applies_to(pair)
            if batch is None:
                continue
            loss = term.loss(model, batch, prepared)
            engine.backward(term.weight * loss, masked=term.masked)
            found.append((term, batch, loss.detach()))
    if not found:
        return {}
    # Read all at once, behind the last backward pass: each reading waits until a GPU has done all that it was given.
    raw: dict[str, float] = {}
    for (term, batch, _), value in zip(
        found, torch.stack([loss.double().reshape(()) for _, _, loss in found]).tolist(), strict=True
    ):
        if not math.isfinite(value):
            ids = ", ".join(batch.ids if isinstance(batch, Batch) else [name for side in batch.sides() for name in side.ids])
            raise RunError(f"Term {term.name!r} became {value} on {ids}. {NOT_FINITE}")
        raw[term.name] = raw.get(term.name, 0.0) + value
    return raw


@contextlib.contextmanager
def training_mode(model: nn.Module, seed: int) -> Iterator[None]:
    """Dropout on, drawn from a seed of this step alone, so that a resumed step draws the same."""
    torch.manual_seed(seed)
    model.train()
    try:
        yield
    finally:
        model.eval()


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that one run of the loop uses."""

    model: nn.Module
    method: Method
    prepared: Prepared
    data: TrainingData
    encoder: Encoder
    engine: Engine
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    plan: Plan
    log: StepLog
    save: Callable[[int], None]
    """Called with the number of steps done, whenever a checkpoint is due."""
    masking: Masking | None = None
    """The saliency mask in force."""
    prepare_batch: Callable[[Batch], Batch] = lambda batch: batch
    """Puts features of pictures in place of their pixels; see `image_features.py`."""
    even: Callable[[Sequence[Pair]], list[Pair]] = list
    """Makes a window look alike on all ranks, for engines that need it (see `dummies.evening`)."""
    asked_to_stop: Callable[[], bool] = lambda: False
    """Looked at after every step; if it is so on any rank, the state is saved and the run ends."""

    def run(self, *, first_step: int = 0) -> int:
        """Train from a step to the end, or until the loss on the watched forget examples is above its bound.

        Returns:
            The number of steps done.

        Raises:
            StoppedError: the process was told to stop; the state was saved.
            RunError: a loss or gradient is not finite, or no step had a gradient.
        """
        args, plan = self.plan.args, self.plan
        terms = self.method.terms()
        watched = watch(self.data, self.encoder, args, self.accelerator.device, self.prepare_batch)
        loader = DataLoader(
            Windows(plan, self.data, self.encoder),
            batch_size=None,
            sampler=range(first_step, plan.total_steps),
            num_workers=args.dataloader_num_workers,
            worker_init_fn=outlive_stop_requests,
        )
        bar = progress(
            loader, desc="training", unit="step", initial=first_step, total=plan.total_steps, disable=not self._is_main
        )
        done, moved = first_step, first_step > 0
        self.optimizer.zero_grad(set_to_none=True)  # what a run that failed may have left in an open model
        for step, window in enumerate(bar, first_step):
            started = time.perf_counter()
            rates = set_learning_rates(self.optimizer, self._factor(step))
            with training_mode(self.model, _step_seed(plan.seed, step, plan.rank)), self.accelerator.autocast():
                pairs = self.even(with_step_totals([self._ready(pair) for pair in window], self.accelerator))
                raw = accumulate(self.model, terms, pairs, self.prepared, self.engine)
            raw = self._summed(terms, raw)
            norms = self.engine.step(args.max_grad_norm)
            done = step + 1
            for part, norm in norms.items():
                require_finite(norm, f"The gradient of the {part} part", done)
            moved = moved or any(norms.values())
            bar.set_postfix({name: f"{value:.3f}" for name, value in raw.items()}, refresh=False)
            if done % args.logging_steps == 0 or done in (1, plan.total_steps):
                # On every rank: where an engine shards the weights, all ranks are needed for a forward pass.
                losses = watched.losses(self.model, done)
                self._log(
                    done,
                    terms={term.name: (raw[term.name], term.weight * raw[term.name]) for term in terms if term.name in raw},
                    losses=losses,
                    gradient_norm=norms,
                    learning_rate=rates,
                    seconds=time.perf_counter() - started,
                )
                if watched.bound and self._on_any_rank(watched.is_over(losses)):
                    break
            stop = self._on_any_rank(self.asked_to_stop()) and done < plan.total_steps
            if stop or (args.save_steps and done % args.save_steps == 0 and done < plan.total_steps):
                self.save(done)
            if stop:
                saved = f"Step {done} of {plan.total_steps} is saved"
                raise StoppedError(f"told to stop. {saved}: go on with the same settings and run.resume=true.")
        if not moved:
            raise RunError(NOT_MOVED)
        return done

    def _ready(self, pair: Pair) -> Pair:
        forget, retain = (batch and self.prepare_batch(batch) for batch in (pair.forget, pair.retain))
        return Pair(forget=forget, retain=retain)

    def _on_any_rank(self, here: bool) -> bool:
        """Whether it is so on any rank, so that all end behind the same step."""
        asked = torch.tensor([float(here)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())

    def _log(self, done: int, **record: Any) -> None:
        if self._is_main:
            self.log.write(step=done, epoch=done / self.plan.order.steps_per_epoch, **record)

    @property
    def _is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _factor(self, step: int) -> float:
        args, total = self.plan.args, self.plan.total_steps
        return rate_factor(step, total=total, warmup=warmup_steps(args, total), scheduler=Scheduler(args.lr_scheduler_type))

    def _summed(self, terms: Sequence[Term], raw: Mapping[str, float]) -> dict[str, float]:
        """Shares of all ranks added up; terms that no rank computed are left out."""
        own = [[raw.get(term.name, 0.0), float(term.name in raw)] for term in terms]
        rows = torch.tensor(own, dtype=torch.float64, device=self.accelerator.device)
        summed = self.accelerator.reduce(rows, reduction="sum").tolist()
        return {term.name: value for term, (value, ranks) in zip(terms, summed, strict=True) if ranks}


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4_099 + rank
