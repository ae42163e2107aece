"""Memory that a training step of a published shape takes, counted without a GPU: torch's fake tensors have sizes only.

    python -m perf.counted                          adapters on LLaVA-1.5-7B, 4 questions of 640 tokens
    python -m perf.counted --rows 16 --tokens 640

Counted are the weights, the adapters with gradients and moments, and what autograd keeps between forward and backward pass
(each storage once, weights left out). Not counted: what exists for a moment only, such as a layer's gradient, logits and the
allocator's rounding; on a card the peak is higher by that.
"""

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mmunlearn.config import Lora
from mmunlearn.models.families import FAMILIES
from mmunlearn.models.tiny_families import build_tiny_family
from mmunlearn.models.tuning import apply_tuning, checkpoint_activations
from perf.common import CORPUS
from perf.gpu_work import ADAPTED, NO_DROPOUT, PRESET
from perf.shapes import SHAPES, config_of, make_model
from perf.training import multiply_as_peft_does

GB = 1e9
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


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """What autograd keeps for the backward pass of a forward pass, each storage once, without the model's own weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, tuple[Any, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen.setdefault(storage._cdata, (storage, storage.nbytes()))  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert forward().requires_grad
    return sum(size for address, (_, size) in seen.items() if address not in weights)


def language_pass(model: Any, rows: int, tokens: int, *, checkpoints: bool) -> Tensor:
    """The language part on embedded tokens: pictures are encoded beforehand and keep nothing."""
    language = model.get_base_model().model.language_model
    width = language.config.hidden_size
    embedded = torch.zeros(rows, tokens, width, dtype=torch.bfloat16, requires_grad=checkpoints)
    allowed = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
    found: Tensor = language(inputs_embeds=embedded, attention_mask=allowed, use_cache=False).last_hidden_state
    return found


def counted(asked: argparse.Namespace, lora: Lora, *, ours: bool, checkpoints: bool) -> list[int]:
    """Bytes of weights, of adapters with their optimizer, of what is kept, and all together."""
    model = adapted(asked.shape, lora)
    if not ours:
        multiply_as_peft_does(model)
    if checkpoints:
        checkpoint_activations(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) * ADAMW_BYTES
    kept = kept_bytes(model, lambda: language_pass(model, asked.rows, asked.tokens, checkpoints=checkpoints))
    return [weights, trained, kept, weights + trained + kept]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["LLaVA-1.5-7B"], default="LLaVA-1.5-7B", help="which model")
    parser.add_argument("--rows", type=int, default=4, help="questions of a forward pass")
    parser.add_argument("--tokens", type=int, default=640, help="of each, its picture among them")
    asked = parser.parse_args()
    print(f"{asked.shape}, adapters, {asked.rows} x {asked.tokens} tokens, GB (10^9 bytes)")
    print(f"{'':44}{'weights':>9}{'adapters':>10}{'kept':>8}{'sum':>8}")
    for name, lora, ours, checkpoints in (
        ("PEFT's branch in float32", NO_DROPOUT, False, False),
        ("branch in bfloat16", NO_DROPOUT, True, False),
        ("PEFT's branch in float32, dropout 0.05", PRESET, False, False),
        ("branch in bfloat16, dropout 0.05 (preset)", PRESET, True, False),
        ("branch in bfloat16, gradient checkpointing", NO_DROPOUT, True, True),
    ):
        with FakeTensorMode():
            columns = counted(asked, lora, ours=ours, checkpoints=checkpoints)
        print(f"{name:44}" + "".join(f"{value / GB:{width}.1f}" for value, width in zip(columns, (9, 10, 8, 8), strict=True)))


if __name__ == "__main__":
    main()
