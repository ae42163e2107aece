"""The product with a masked low-rank update against the formula written out, and what it keeps for its gradient."""

import gc

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch.nn import functional

from mmunlearn.models.masked_lora import BITS, MaskedLora, masked_delta, masked_linear
from mmunlearn.models.saliency_mask import pack

SCALING = 1.7


def case(dtype=torch.double, shape=(2, 3), inputs=7, outputs=5, rank=3, seed=0):
    """x, A, B with gradients, and a mask that selects some weights in every row and column."""
    dice = torch.Generator().manual_seed(seed)
    sizes = ((*shape, inputs), (rank, inputs), (outputs, rank))
    x, a, b = (torch.randn(size, generator=dice, dtype=torch.double).to(dtype).requires_grad_() for size in sizes)
    return x, a, b, torch.rand(outputs, inputs, generator=dice) < 0.4


def written_out(x, a, b, mask):
    return functional.linear(x, mask * (SCALING * (b @ a)))


def gradients(function, x, a, b, mask_or_bits, upstream):
    return torch.autograd.grad(function(x, a, b, mask_or_bits), (x, a, b), upstream)


def ours(x, a, b, bits):
    return masked_linear(x, a, b, bits, SCALING)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2), (0,)], ids=str)
@pytest.mark.parametrize("inputs", [7, 8], ids=["with unused bits", "whole bytes"])
def test_output_and_gradients_are_those_of_the_formula(shape, inputs):
    x, a, b, mask = case(shape=shape, inputs=inputs)
    bits = pack(mask)
    torch.testing.assert_close(ours(x, a, b, bits), written_out(x, a, b, mask), rtol=1e-13, atol=1e-14)
    upstream = torch.randn(*shape, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    found = gradients(ours, x, a, b, bits, upstream)
    for one, other in zip(found, gradients(written_out, x, a, b, mask, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("wanted", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=str)
def test_gradients_by_finite_differences(wanted):
    x, a, b, mask = case()
    inputs = [tensor.detach().requires_grad_(bool(flag)) for tensor, flag in zip((x, a, b), wanted, strict=True)]
    assert torch.autograd.gradcheck(ours, (*inputs, pack(mask)))


def test_the_update_is_exactly_zero_outside_the_mask():
    _, a, b, mask = case(torch.float32)
    delta = masked_delta(a.detach(), b.detach(), pack(mask), SCALING)
    assert torch.equal(delta[~mask], torch.zeros(int((~mask).sum())))
    torch.testing.assert_close(delta[mask], (SCALING * b @ a)[mask].detach())
    assert delta[mask].abs().min() > 0


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside autocast", "backward outside autocast"])
def test_a_half_precision_input_rounds_once_and_the_adapter_gets_full_gradients(inside):
    """x in bfloat16, A and B in float32: against float64 numbers from the same rounded x."""
    x, a, b, mask = case(torch.float32, shape=(40,), inputs=96, outputs=64)
    x = x.detach().bfloat16().requires_grad_()
    upstream = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(x, a, b, pack(mask))
        if inside:
            found = torch.autograd.grad(y, (x, a, b), upstream)
    if not inside:
        found = torch.autograd.grad(y, (x, a, b), upstream)
    assert [y.dtype, *(gradient.dtype for gradient in found)] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, a, b)]
    expected = torch.autograd.grad(written_out(*exact, mask), exact, upstream.double())
    for one, other in zip((y, *found), (written_out(*exact, mask), *expected), strict=True):
        assert (one.double() - other).norm() / other.norm() < 4e-3  # half a unit in the last place of bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_around_it_changes_nothing(dtype):
    """The precision is that of x, forward and backward; autocast would round B A more than once."""
    x, a, b, mask = case(torch.float32, shape=(40,), inputs=96, outputs=64)
    x = x.detach().to(dtype).requires_grad_()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = ours(x, a, b, pack(mask))
            found.append([y, *torch.autograd.grad(y, (x, a, b), torch.ones_like(y))])
    assert all(torch.equal(plain, within) for plain, within in zip(*found, strict=True))


# --- memory ----------------------------------------------------------------------------------------------------------


def saved_bytes(function):
    """Bytes of the tensors that the graph of a result holds on to; a storage counts once."""
    kept = {}

    def remember(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        result = function()
    return sum(kept.values()), result


def matrices(shape):
    """Tensors of one shape that Python holds on to."""
    gc.collect()
    return {id(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and tuple(o.shape) == shape}


def test_no_dense_matrix_is_kept_for_the_gradient():
    x, a, b, mask = case(torch.float32, shape=(16,), inputs=256, outputs=192, rank=4)
    bits = pack(mask)
    factors = sum(tensor.numel() * tensor.element_size() for tensor in (x, a, b, bits))
    before = matrices((192, 256))
    kept, result = saved_bytes(lambda: ours(x, a, b, bits))
    assert matrices((192, 256)) == before, "nor beside the graph, as an attribute"
    assert kept <= factors
    naive, other = saved_bytes(lambda: written_out(x, a, b, mask))
    assert naive > factors + 192 * 256 * 4, "the formula keeps the update and the mask"
    result.sum().backward()
    other.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_layer_keeps_nothing_beyond_the_layer_without_adapter_but_the_factors(dtype):
    """In half precision the input is kept in half precision too."""
    base = torch.nn.Linear(256, 192, dtype=dtype).requires_grad_(False)
    x, *_, mask = case(dtype, shape=(16,), inputs=256, outputs=192)
    plain, _ = saved_bytes(lambda: base(x))
    layer = Linear(base, "default", LoraConfig(r=4, lora_alpha=8), r=4, lora_alpha=8)
    layer.lora_A.float(), layer.lora_B.float()
    layer.register_buffer(BITS, pack(mask), persistent=False)
    layer.lora_variant["default"] = MaskedLora({})
    kept, result = saved_bytes(lambda: layer(x))
    assert plain < kept <= plain + 16 * 256 * dtype.itemsize + 4 * (256 + 192) * 4 + 256 * 192 // 8
    result.sum().backward()
