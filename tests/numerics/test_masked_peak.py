"""The most memory that masked adapters take at once does not grow with the number of layers; the plain formula's does."""

import weakref

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmunlearn.models.masked_lora import masked_linear
from mmunlearn.models.saliency_mask import pack, unpack

WIDTH, TOKENS, RANK = 256, 4, 2
DENSE = 4 * WIDTH * WIDTH
"""Bytes of one dense update in float32."""


class Peak(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make while they are alive; `most` is the most at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak(layer, depth):
    """Bytes of a forward and backward pass through so many layers, weights and factors not counted, in dense updates."""
    torch.manual_seed(0)
    rows = [
        (
            torch.randn(RANK, WIDTH, requires_grad=True),
            torch.randn(WIDTH, RANK, requires_grad=True),
            pack(torch.rand(WIDTH, WIDTH) > 0.5),
        )
        for _ in range(depth)
    ]
    x = torch.randn(TOKENS, WIDTH)
    with Peak() as counted:
        for a, b, bits in rows:
            x = torch.tanh(layer(x, a, b, bits))
        x.sum().backward()
    return counted.most / DENSE


def ours(x, a, b, bits):
    return masked_linear(x, a, b, bits, 1.0)


def plain(x, a, b, bits):
    return functional.linear(x, (b @ a) * unpack(bits, (WIDTH, WIDTH)))


def test_peak_memory_does_not_grow_with_the_layers():
    few, many = peak(ours, 2), peak(ours, 8)
    assert many < few + 0.5
    assert many < 3


def test_the_plain_formula_keeps_a_dense_update_for_each_layer():
    """The instrument sees what it is to see."""
    assert peak(plain, 8) > peak(plain, 2) + 5
