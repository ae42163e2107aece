"""Sums of squared gradients over a set of examples, one float32 buffer a tensor, without keeping any gradient.

Legend: B examples of a batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmunlearn.config_enums import Per, Reduction
from mmunlearn.data.batch import Batch, Encoder, collate
from mmunlearn.data.example import Example
from mmunlearn.errors import RunError
from mmunlearn.models.likelihood import answer_log_probs, sequence_counts, sequence_sums
from mmunlearn.progress import progress
from mmunlearn.saliency.per_layer import Target, UnsupportedLayerError, Watch, plan_layers

SORTED_TOGETHER = 256
"""Examples among which those of similar length are put into one batch; a person's questions follow each other, so a picture
is not decoded over and over."""
LONG = 256
"""Tokens from which on an example is computed by itself: it keeps the machine busy alone, and needs no check of the layers."""
CHECK_EVERY = 64
"""Batches between two looks at whether all sums are finite."""
SCALES = (2.0**12, 2.0**6, 1.0)
"""Loss scales for float16, whose smallest number is 6e-8: the first that lets no gradient overflow is used."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""By how much a tensor's squares may differ between a batch and its examples, in float32 and in half precision."""
NOISE, HALF_NOISE = 1e-9, 1e-4
"""Mean squares so small, against that of all weights, are rounding errors: the gradient is 0 by symmetry (key biases)."""


class OverflowedError(Exception):
    """A gradient became infinite or NaN under a loss scale that can still be lowered."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss whose gradient is squared."""

    per: Per
    reduction: Reduction

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch, nats.

        per=batch: mean or sum over all its supervised tokens. per=example: the sum over its examples of each example's own
        mean or sum, so that the gradients of different examples do not mix.
        """
        losses = -answer_log_probs(model, batch)
        if self.reduction is Reduction.sum:
            return losses.sum()
        if self.per is Per.batch:
            return losses.mean()
        return (sequence_sums(losses, batch) / sequence_counts(batch).to(losses.device)).sum()


@dataclass(frozen=True, kw_only=True)
class Source:
    """A set of examples and what it adds to the sums."""

    name: str
    """For the progress bar."""
    examples: Sequence[Example]
    factors: Mapping[str, float]
    """By parameter name: what each square (signed: each gradient) is multiplied by; parameters left out get nothing."""


class Sums:
    """One float32 buffer for each parameter of a group."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, signed: bool = False) -> None:
        """Allocate zeros.

        Args:
            parameters: by name.
            signed: add up gradients instead of their squares.
        """
        self.signed = signed
        self.totals = {
            name: torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
            for name, parameter in parameters.items()
        }

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        return sum(total.numel() * total.element_size() for total in self.totals.values())

    def add(self, name: str, gradient: Tensor, factor: float) -> None:
        """Add one gradient, or its square: computed in float32 whatever the gradient's type."""
        gradient = gradient.detach().float()
        if self.signed:
            self.totals[name].add_(gradient, alpha=factor)
        else:
            self.totals[name].addcmul_(gradient, gradient, value=factor)

    def clear(self) -> None:
        """Back to zero."""
        for total in self.totals.values():
            total.zero_()

    def finite(self) -> bool:
        """Whether no infinity or NaN was added."""
        # A sum is finite only if all its terms are; in float64 it cannot overflow by itself.
        return all(math.isfinite(float(total.sum(dtype=torch.float64))) for total in self.totals.values())


@contextmanager
def only_gradients_of(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Ask autograd for the gradients of some parameters only, in eval mode; afterwards everything is as before."""
    parameters = dict(model.named_parameters())
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    training = model.training
    model.eval()
    model.requires_grad_(False)
    chosen = {name: parameters[name] for name in names}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
        model.train(training)


class Estimator:
    """Adds up squared gradients of sets of examples, group by group."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        objective: Objective,
        batch_size: int,
        say: Callable[[str], None],
        prepare_batch: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        """Prepare.

        Args:
            model: on its device already; its weights are never changed.
            encoder: makes token ids, labels and pixels of examples.
            objective: the loss.
            batch_size: examples that are computed together.
            say: where remarks go.
            prepare_batch: puts features of pictures in place of their pixels, see `models/image_features.py`.
        """
        self.prepare_batch = prepare_batch
        self.model, self.encoder, self.objective = model, encoder, objective
        self.batch_size = batch_size
        self.say = say
        self.device = next(model.parameters()).device
        self.half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
        self.fast = objective.per is Per.example
        """Whether examples are told apart layer by layer; once that failed they are taken one at a time."""
        float16 = any(parameter.dtype is torch.float16 for parameter in model.parameters())
        self._scales = list(SCALES if float16 else (1.0,))

    def run(self, sums: Sums, sources: Sequence[Source], between: Callable[[int], None] = lambda number: None) -> None:
        """Add all sources to the sums, one after the other.

        Args:
            sums: of one group of parameters; cleared first.
            sources: in order.
            between: called with a source's number when it is done.

        Raises:
            RunError: a gradient is not finite; names the examples.
        """
        while True:
            sums.clear()
            try:
                self._check_fast(sums, sources)
                for number, source in enumerate(sources):
                    self._add(sums, source)
                    between(number)
            except UnsupportedLayerError as reason:
                self._slow_down(str(reason))
            except OverflowedError:
                del self._scales[0]
            else:
                return

    def _slow_down(self, reason: str) -> None:
        self.say(f"Examples are taken one at a time, which is slower: {reason}.")
        self.fast = False

    def _add(self, sums: Sums, source: Source) -> None:
        with progress(desc=source.name, unit="example", total=len(source.examples)) as bar:
            if not self.fast or sums.signed:
                size = self.batch_size if sums.signed or self.objective.per is Per.batch else 1
                self._add_batches(sums, source.factors, source.examples, size, bar.update, fast=False)
                return
            for kind in _kinds(source.examples):
                long = self._is_long(kind[0])
                self._add_batches(sums, source.factors, kind, 1 if long else self.batch_size, bar.update, fast=not long)

    def _is_long(self, example: Example) -> bool:
        """Whether an example, and so others of its kind, is worth a pass of its own."""
        return len(self.encoder(example).labels) > LONG

    def _add_batches(
        self,
        sums: Sums,
        factors: Mapping[str, float],
        examples: Sequence[Example],
        size: int,
        tell: Callable[[int], Any],
        *,
        fast: bool,
    ) -> None:
        recent: list[Example] = []
        with self._adding(sums, factors, fast=fast) as add:
            for number, group in enumerate(batches(examples, size, by_length=self.objective.per is Per.example), 1):
                add(group)
                recent += group
                tell(len(group))
                if number % CHECK_EVERY == 0:
                    self._check_finite(sums, recent)
                    recent.clear()
        self._check_finite(sums, recent)

    @contextmanager
    def _adding(self, sums: Sums, factors: Mapping[str, float], *, fast: bool) -> Iterator[Callable[[Sequence[Example]], None]]:
        """A function that adds one batch, with the hooks that it needs in place."""
        scale = self._scales[0]
        power = 1 if sums.signed else 2
        factors = {name: factor / scale**power for name, factor in factors.items() if name in sums.totals}
        names = list(factors)
        with only_gradients_of(self.model, [] if fast else names) as chosen:
            watch = Watch(plan_layers(self.model, names), _targets(sums, factors)) if fast else None
            handles = [
                _when_complete(parameter, partial(_take_gradient, sums, name, factors[name]))
                for name, parameter in chosen.items()
            ]

            def add(examples: Sequence[Example]) -> None:
                batch = self._encoded(examples)
                if watch is not None:
                    self._check_pictures(batch)
                    watch.begin(sequence_counts(batch).tolist())
                with torch.enable_grad():
                    loss = self.objective(self.model, batch) * scale
                    if loss.requires_grad:  # nothing does if a text question is to change the vision part
                        loss.backward()  # type: ignore[no-untyped-call]

            try:
                yield add
            finally:
                for handle in handles:
                    handle.remove()
                if watch is not None:
                    watch.remove()

    def _encoded(self, examples: Sequence[Example]) -> Batch:
        encoded = [self.encoder(example) for example in examples]
        return self.prepare_batch(collate(encoded, pad_token_id=self.encoder.pad_token_id).to(self.device))

    def _check_pictures(self, batch: Batch) -> None:
        pixels = batch.inputs.get("pixel_values")
        if pixels is not None and len(pixels) != len(batch.ids):
            raise UnsupportedLayerError("a picture is given to the model in several pieces")

    # Guards ---------------------------------------------------------------------------------------------------------

    def _check_fast(self, sums: Sums, sources: Sequence[Source]) -> None:
        """Compute two examples with a picture and two without both ways, in the same buffers, and compare; not long ones.

        It is the layers that are tried, so sources with the same parameters are tried together.

        Raises:
            UnsupportedLayerError: they differ.
        """
        if not self.fast or sums.signed:
            return
        alike: dict[frozenset[str], list[Source]] = {}
        for source in sources:
            alike.setdefault(frozenset(source.factors), []).append(source)
        for group in alike.values():
            self._check_group(sums, group[0].factors, [example for source in group for example in source.examples])

    def _check_group(self, sums: Sums, factors: Mapping[str, float], all_examples: Sequence[Example]) -> None:
        for examples in (kind[:2] for kind in _kinds(all_examples) if not self._is_long(kind[0])):
            with self._adding(sums, factors, fast=True) as add:
                add(examples)
            size = {name: float(total.abs().sum(dtype=torch.float64)) for name, total in sums.totals.items()}
            with self._adding(sums, {name: -factor for name, factor in factors.items()}, fast=False) as add:
                for example in examples:
                    add([example])
            self._compare(sums, size)
            sums.clear()

    def _compare(self, sums: Sums, size: Mapping[str, float]) -> None:
        tolerance, noise = (HALF_TOLERANCE, HALF_NOISE) if self.half else (TOLERANCE, NOISE)
        mean = sum(size.values()) / sum(total.numel() for total in sums.totals.values())
        for name, total in sums.totals.items():
            error = float(total.abs().sum(dtype=torch.float64))
            if error > tolerance * size[name] + noise * mean * total.numel():
                raise UnsupportedLayerError(f"{name} gets other gradients from a batch than from its examples")

    def _check_finite(self, sums: Sums, recent: Sequence[Example]) -> None:
        if sums.finite():
            return
        if len(self._scales) > 1:
            raise OverflowedError
        culprits = [example.id for example in recent if not self._is_finite([example])]
        where = ", ".join((culprits or [example.id for example in recent])[:5])
        raise RunError(
            f"The gradients of {where} are infinite or not a number, so no mask can be made. Look at these examples and at "
            "the model's weights; with model.dtype=float16, float32 or bfloat16 may help."
        )

    def _is_finite(self, examples: Sequence[Example]) -> bool:
        names = [name for name, parameter in self.model.named_parameters() if parameter.is_floating_point()]
        found: list[bool] = []

        def look(parameter: Tensor) -> None:
            found.append(parameter.grad is None or bool(parameter.grad.isfinite().all()))
            parameter.grad = None

        with only_gradients_of(self.model, names) as chosen, torch.enable_grad():
            handles = [_when_complete(parameter, look) for parameter in chosen.values()]
            try:
                self.objective(self.model, self._encoded(examples)).backward()  # type: ignore[no-untyped-call]
            finally:
                for handle in handles:
                    handle.remove()
        return all(found)


def _kinds(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples with a picture and those without, as far as there are any."""
    kinds = ([e for e in examples if (e.image is not None) == has_image] for has_image in (True, False))
    return [kind for kind in kinds if kind]


def _targets(sums: Sums, factors: Mapping[str, float]) -> dict[str, Target]:
    return {name: Target(total=sums.totals[name], factor=factor) for name, factor in factors.items()}


def _when_complete(parameter: Tensor, act: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a function each time a backward pass has accumulated a parameter's gradient."""
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(act)  # type: ignore[no-untyped-call]
    return handle


def _take_gradient(sums: Sums, name: str, factor: float, parameter: Tensor) -> None:
    """Add a gradient as soon as it is complete, and free it."""
    assert parameter.grad is not None
    sums.add(name, parameter.grad, factor)
    parameter.grad = None


def batches(examples: Sequence[Example], size: int, *, by_length: bool) -> Iterator[list[Example]]:
    """Batches that never mix questions with and without a picture: first those with one.

    Args:
        examples: in the order of the data set.
        size: examples of a batch; the last one of each kind may have fewer.
        by_length: put examples of similar length together, which saves padding; otherwise keep the order.
    """
    for own in _kinds(examples):
        for window in _cut(own, SORTED_TOGETHER if by_length else max(1, len(own))):
            ordered = sorted(window, key=_length) if by_length else window
            yield from (list(group) for group in _cut(ordered, size))


def _cut(items: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _length(example: Example) -> int:
    return len(example.question) + len(example.answer)


def num_squares(examples: Sequence[Example], per: Per, batch_size: int) -> int:
    """How many squares a mean is taken over: examples, or batches."""
    if per is Per.example:
        return len(examples)
    return sum(1 for _ in batches(examples, batch_size, by_length=False))
