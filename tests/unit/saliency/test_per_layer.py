"""The rule of each kind of layer against autograd on one example at a time."""

import pytest
import torch
from torch import nn

from mmunlearn.saliency.per_layer import Target, UnsupportedLayerError, Watch, plan_layers

DICE = torch.Generator().manual_seed(0)


def noise(*shape):
    return torch.randn(*shape, generator=DICE)


class Scaled(nn.Module):
    """A kind without a rule of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(noise(6))

    def forward(self, x):
        return (x * self.weight).cumsum(dim=1)


IDS = torch.tensor([[0, 1, 1, 4], [2, 0, 0, 2], [3, 1, 2, 3]])
CASES = {
    "embedding": (nn.Embedding(5, 6), IDS),
    "padding": (nn.Embedding(5, 6, padding_idx=0), IDS),
    "linear": (nn.Linear(6, 4), noise(3, 5, 6)),
    "pooled": (nn.Linear(6, 4), noise(3, 6)),
    "grid": (nn.Linear(6, 4), noise(3, 2, 5, 6)),
    "convolution": (nn.Conv2d(2, 3, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)), noise(3, 2, 8, 9)),
    "norm": (nn.LayerNorm(6), noise(3, 5, 6)),
    "other": (Scaled(), noise(3, 5, 6)),
}


def losses(layer, inputs, coefficients):
    return [(coefficients[b : b + 1] * layer(inputs[b : b + 1])).sum() for b in range(len(inputs))]


@pytest.mark.parametrize("kind", CASES)
def test_against_one_example_at_a_time(kind):
    layer, inputs = CASES[kind]
    layer.requires_grad_(True)
    names = [name for name, _ in layer.named_parameters()]
    coefficients = noise(*layer(inputs).shape)
    expected = {name: 0 for name in names}
    for loss in losses(layer, inputs, coefficients):
        for name, gradient in zip(names, torch.autograd.grad(loss, list(layer.parameters())), strict=True):
            expected[name] = expected[name] + 0.5 * gradient.double() ** 2
    layer.requires_grad_(False)
    targets = {name: Target(total=torch.zeros_like(p), factor=0.5) for name, p in layer.named_parameters()}
    watch = Watch(plan_layers(layer, names), targets)
    watch.begin([1, 1, 1])
    (layer(inputs) * coefficients).sum().backward()
    watch.remove()
    for name in names:
        torch.testing.assert_close(targets[name].total.double(), expected[name], rtol=1e-5, atol=1e-9)


def test_rows_of_supervised_positions_are_cut_by_their_counts():
    layer, counts = nn.Linear(6, 4), [2, 1, 4]
    inputs, coefficients = noise(7, 6), noise(7, 4)
    expected = sum((c.T @ a) ** 2 for c, a in zip(coefficients.split(counts), inputs.split(counts), strict=True))
    for shape in ((7, -1), (1, 7, -1)):
        layer.requires_grad_(False)
        targets = {"weight": Target(total=torch.zeros(4, 6), factor=1.0)}
        watch = Watch(plan_layers(layer, ["weight"]), targets)
        watch.begin(counts)
        (layer(inputs.view(shape)) * coefficients.view(shape)).sum().backward()
        watch.remove()
        torch.testing.assert_close(targets["weight"].total, expected)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(6, 4), noise(5, 6)),
        (nn.Embedding(5, 6), IDS[:1]),
        (nn.Embedding(5, 6, scale_grad_by_freq=True), IDS),
        (nn.Conv2d(4, 4, 1, groups=2), noise(3, 4, 2, 2)),
        (nn.LayerNorm((5, 6)), noise(3, 5, 6)),
        (Scaled(), noise(1, 5, 6)),
    ],
)
def test_what_cannot_be_told_apart_is_refused(layer, inputs):
    layer.requires_grad_(False)
    targets = {name: Target(total=torch.zeros_like(p), factor=1.0) for name, p in layer.named_parameters()}
    watch = Watch(plan_layers(layer, list(targets)), targets)
    watch.begin([1, 1, 1])
    with pytest.raises(UnsupportedLayerError):
        layer(inputs).sum().backward()
    watch.remove()
