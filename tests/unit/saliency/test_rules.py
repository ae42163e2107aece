"""Ranking without sorting, against sorting."""

import pytest
import torch

from mmunlearn.saliency import rules


def sorted_top(values, count):
    """The mask of the largest, by a stable sort."""
    order = values.flatten().argsort(descending=True, stable=True)[:count]
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.view(values.shape)


@pytest.mark.parametrize("count", [1, 7, 500, 999, 1000])
@pytest.mark.parametrize("kind", ["wide", "close", "ties", "zeros"])
def test_largest_against_a_sort(count, kind, monkeypatch):
    monkeypatch.setattr(rules, "CHUNK", 64)
    dice = torch.Generator().manual_seed(1)
    values = {
        "wide": torch.exp(30 * torch.randn(20, 50, generator=dice)).clamp(max=1e30),
        "close": 1 + 1e-6 * torch.rand(20, 50, generator=dice),
        "ties": torch.randint(0, 5, (20, 50), generator=dice).float(),
        "zeros": torch.randn(20, 50, generator=dice).relu() * 1e-40,  # some are denormal
    }[kind]
    assert torch.equal(rules.largest(values, count), sorted_top(values, count))


def test_one_ranking_over_several_tensors():
    dice = torch.Generator().manual_seed(2)
    tensors = [torch.rand(5, 7, generator=dice), torch.zeros(3), torch.rand(40, generator=dice)]
    cut = rules.cutoff(lambda: tensors, 30)
    masks = []
    for tensor in tensors:
        mask, cut = rules.top_mask(tensor, cut)
        masks.append(mask)
    expected = sorted_top(torch.cat([tensor.flatten() for tensor in tensors]), 30)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), expected)


def test_none_of_them():
    assert not rules.largest(torch.rand(5), 0).any()


def test_drawn_weights_are_as_many_as_asked_and_all_equally_likely():
    counts = sum(rules.drawn((4, 5), 6, seed).float() for seed in range(400))
    assert float(counts.sum()) == 6 * 400
    assert float((counts / 400 - 0.3).abs().max()) < 4 * (0.3 * 0.7 / 400) ** 0.5
