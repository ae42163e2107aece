"""Memory that a training step of a published shape takes, counted without a GPU: torch's fake tensors have sizes only.

    python -m perf.counted                          adapters on LLaVA-1.5-7B, 4 questions of 640 tokens
    python -m perf.counted --rows 16 --tokens 640

Counted are the weights, the adapters with gradients and moments, what the language part's forward pass leaves for its backward
pass, and the most that exist at once during both (each storage once). Not counted: pictures, logits of the supervised tokens,
what a kernel needs inside, and the allocator's rounding; on a card the peak is higher by that.
"""

import argparse
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmunlearn.config import Lora
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import FAMILIES
from mmunlearn.models.tiny_families import build_tiny_family
from mmunlearn.models.tuning import apply_tuning
from perf.common import CORPUS
from perf.gpu_work import ADAPTED, NO_DROPOUT, PRESET
from perf.shapes import SHAPES, config_of, make_model
from perf.training import multiply_as_peft_does

GB = 1e9
KEPT, SELECTIVE, ALL = "kept", "selective", "all"
"""What is done with activations; see `mmunlearn.models.checkpointing`."""
CPU = torch.device("cpu")
ADAMW_BYTES = 4 * 4
"""A trained float32 weight: itself, its gradient and two moments."""


def adapted(shape: str, lora: Lora) -> Any:
    """A model of a shape in bfloat16, with adapters on its language part."""
    family = FAMILIES[SHAPES[shape].family]
    tiny, _ = build_tiny_family(SHAPES[shape].family, CORPUS, seed=0, size=SHAPES[shape].pixels)
    model = make_model(config_of(tiny.config, SHAPES[shape]), torch.bfloat16, CPU)
    with mock.patch.object(nn.Module, "to", lambda module, *where, **how: module):  # fake tensors cannot be moved
        return apply_tuning(model, family, ADAPTED, lora).train()


class Alive(TorchDispatchMode):
    """The bytes of all tensors that exist, each storage once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor for as long as it exists."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = size = storage.nbytes()
        weakref.finalize(storage, self._gone, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked and count what came out."""
        found = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return found


def kept_and_most(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes beyond weights and their gradients: what the forward pass leaves for the backward, and the most in both."""
    alive = Alive()
    for parameter in model.parameters():
        alive.add(parameter)
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # as from an earlier micro-batch; counted with the optimizer
            alive.add(parameter.grad)
    weights = alive.now
    with alive:
        found = forward()
        kept = alive.now - weights
        found.sum().backward()
    return kept, alive.most - weights


def language_pass(model: Any, rows: int, tokens: int, how: str) -> Tensor:
    """The language part on embedded tokens: pictures are encoded beforehand and keep nothing."""
    language = model.get_base_model().model.language_model
    width = language.config.hidden_size
    embedded = torch.zeros(rows, tokens, width, dtype=torch.bfloat16, requires_grad=how != KEPT)
    allowed = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
    found: Tensor = language(inputs_embeds=embedded, attention_mask=allowed, use_cache=False).last_hidden_state
    return found


def counted(asked: argparse.Namespace, lora: Lora, how: str, *, ours: bool) -> list[int]:
    """Bytes of weights, of adapters with their optimizer, of what is kept, of the most, and of all but what is kept."""
    model = adapted(asked.shape, lora)
    if not ours:
        multiply_as_peft_does(model)
    if how != KEPT:
        checkpoint_activations(model, selective=how == SELECTIVE)
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) * ADAMW_BYTES
    kept, most = kept_and_most(model, lambda: language_pass(model, asked.rows, asked.tokens, how))
    return [weights, trained, kept, most, weights + trained + most]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["LLaVA-1.5-7B"], default="LLaVA-1.5-7B", help="which model")
    parser.add_argument("--rows", type=int, default=4, help="questions of a forward pass")
    parser.add_argument("--tokens", type=int, default=640, help="of each, its picture among them")
    asked = parser.parse_args()
    print(f"{asked.shape}, adapters, {asked.rows} x {asked.tokens} tokens, GB (10^9 bytes)")
    print(f"{'':52}{'weights':>9}{'adapters':>10}{'kept':>8}{'most':>8}{'sum':>8}")
    for name, lora, how, ours in (
        ("PEFT's branch in float32", NO_DROPOUT, KEPT, False),
        ("PEFT's branch in float32, dropout 0.05", PRESET, KEPT, False),
        ("ours in bfloat16", NO_DROPOUT, KEPT, True),
        ("ours, dropout 0.05 (preset)", PRESET, KEPT, True),
        ("ours, gradient_checkpointing=selective", NO_DROPOUT, SELECTIVE, True),
        ("ours, gradient_checkpointing=selective, dropout 0.05", PRESET, SELECTIVE, True),
        ("ours, gradient_checkpointing=true", NO_DROPOUT, ALL, True),
    ):
        with FakeTensorMode():
            columns = counted(asked, lora, how, ours=ours)
        widths = (9, 10, 8, 8, 8)
        print(f"{name:52}" + "".join(f"{value / GB:{width}.1f}" for value, width in zip(columns, widths, strict=True)))


if __name__ == "__main__":
    main()
