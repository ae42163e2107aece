"""The reference: a frozen model that an unlearning method compares with, by default the model before unlearning.

Legend: B sequences, T tokens, N supervised tokens, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from mmunlearn.data.batch import Batch as Batch
from mmunlearn.data.batch import Encoder, collate
from mmunlearn.data.example import Example
from mmunlearn.models.likelihood import all_logits, answer_log_probs, answer_logits, sequence_sums
from mmunlearn.progress import progress


class Frozen(nn.Module):
    """A model with the weights that it has now, whatever training does to it later.

    An adapter is switched off; only what is tuned fully is copied. Where nothing is, this costs no memory.
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy the weights that training will change."""
        super().__init__()
        self._shared = [model]  # in a list: not a submodule, so that its parameters are not counted twice
        self._kept = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and "lora_" not in name
        }

    def forward(self, **inputs: Any) -> Any:
        """What `model(**inputs)` returned when this was made, without dropout and without a graph."""
        model = self._shared[0]
        with torch.no_grad(), _without_adapter(model), _evaluating(model):
            return functional_call(model, self._kept, kwargs=inputs) if self._kept else model(**inputs)


@contextlib.contextmanager
def _without_adapter(model: nn.Module) -> Iterator[None]:
    if not isinstance(model, PeftModel):
        yield
        return
    with model.disable_adapter():
        yield


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that is asked for likelihoods and never changed."""

    model: nn.Module
    encoder: Encoder
    batch_size: int = 4
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    """The precision that training uses, so that the same model has the same likelihoods."""
    stored: Mapping[str, float] = field(default_factory=dict)
    """Likelihoods of an interrupted run, by example id; they are not computed again."""
    prepare_batch: Callable[[Batch], Batch] = lambda batch: batch
    """Puts features in place of pixels, if this model sees as the one in training does; see `image_features.py`."""
    freeze: Callable[[nn.Module], nn.Module] = Frozen
    """Makes a model that keeps its present weights of one that is trained."""

    def log_likelihoods(self, examples: Sequence[Example]) -> dict[str, float]:
        """The log-likelihood of each example's answer, summed over its supervised tokens, nats; by example id."""
        found = {example.id: self.stored[example.id] for example in examples if example.id in self.stored}
        missing = sorted((e for e in examples if e.id not in found), key=lambda e: len(self.encoder(e).labels))
        parts = [missing[start : start + self.batch_size] for start in range(0, len(missing), self.batch_size)]
        for part in progress(parts, desc="reference", unit="batch", disable=not parts):
            batch = collate([self.encoder(e) for e in part], pad_token_id=self.encoder.pad_token_id).to(self.device)
            with torch.no_grad(), _evaluating(self.model), self.autocast():
                sums = sequence_sums(answer_log_probs(self.model, self.prepare_batch(batch)), batch)
            found |= dict(zip(batch.ids, sums.tolist(), strict=True))
        return {example.id: found[example.id] for example in examples}

    def kept(self) -> "Reference":
        """A reference that stays as it is while the model is trained; copies the weights that are tuned fully."""
        changes = any(parameter.requires_grad for parameter in self.model.parameters())
        return Reference(model=self.freeze(self.model) if changes else self.model, encoder=self.encoder, device=self.device)

    def answer_logits(self, batch: Batch) -> Tensor:
        """[N, V], float32, no graph; see `likelihood.answer_logits`."""
        with torch.no_grad():
            return answer_logits(self.model, batch)

    def all_logits(self, batch: Batch) -> Tensor:
        """[B, T, V], float32, no graph; see `likelihood.all_logits`."""
        with torch.no_grad():
            return all_logits(self.model, batch)
