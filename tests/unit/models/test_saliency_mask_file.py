"""Masks on disk: what is damaged or foreign ends in one message, never in a traceback or a wrong mask."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmunlearn.errors import ConfigError
from mmunlearn.models.saliency_mask import FORMAT, load_mask, mask_fingerprint, mask_of, pack, save_mask, unpack

GOOD = {"format": FORMAT, "shapes": json.dumps({"a": [3, 5]}), "card": "{}"}
BITS = torch.zeros(2, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (3, 5), (2, 3, 7), (0,)])
def test_packing_keeps_every_bit(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5
    bits = pack(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack(bits, shape), mask)


def test_bits_stand_in_the_order_of_the_weights():
    mask = torch.tensor([True, False, False, True, False, False, False, False, True])
    assert pack(mask).tolist() == [0b1001, 0b1]


def test_a_mask_comes_back_as_it_was(tmp_path):
    mask = mask_of({"a": torch.eye(5, dtype=torch.bool), "b": torch.ones(3, dtype=torch.bool)}, {"rule": "x"})
    save_mask(mask, tmp_path / "mask.safetensors")
    found = load_mask(tmp_path)
    assert (found.shapes, found.card) == (mask.shapes, mask.card)
    assert all(torch.equal(found.tensor(name), mask.tensor(name)) for name in mask.bits)
    assert mask_fingerprint(found) == mask_fingerprint(mask)


def test_one_bit_makes_another_fingerprint():
    masks = [mask_of({"a": torch.arange(9) == number}, {}) for number in range(9)]
    assert len({mask_fingerprint(mask) for mask in masks}) == 9
    assert mask_fingerprint(mask_of({"a": torch.arange(9) == 1}, {"other": "card"})) == mask_fingerprint(masks[1])


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        ({}, {"a": BITS}),
        ({key: value for key, value in GOOD.items() if key != "shapes"}, {"a": BITS}),
        ({key: value for key, value in GOOD.items() if key != "card"}, {"a": BITS}),
        (GOOD | {"shapes": "{"}, {"a": BITS}),
        (GOOD | {"shapes": "[]"}, {"a": BITS}),
        (GOOD | {"shapes": json.dumps({"a": ["three", 5]})}, {"a": BITS}),
        (GOOD | {"shapes": json.dumps({"a": [-3, -5]})}, {"a": BITS}),
        (GOOD | {"card": "5"}, {"a": BITS}),
        (GOOD, {"a": BITS[:1]}),
        (GOOD, {"a": BITS.float()}),
        (GOOD, {"a": BITS[None]}),
        (GOOD, {}),
        (GOOD, {"a": BITS, "b": BITS.clone()}),
    ],
    ids=lambda value: None,
)
def test_a_damaged_mask_is_one_message(header, tensors, tmp_path):
    file = tmp_path / "mask.safetensors"
    save_file({**tensors, **({} if tensors else {"none": BITS})}, file, metadata=header)
    with pytest.raises(ConfigError, match=r"mask\.safetensors.*mmunlearn saliency"):
        load_mask(file)


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({"a": BITS}, tmp_path / "language_mask.pt")
    with pytest.raises(ConfigError, match="not read"):
        load_mask(tmp_path / "language_mask.pt")
