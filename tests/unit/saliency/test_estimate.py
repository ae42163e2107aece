"""Masks of a model so small that its gradients are worked out by hand, and the controls.

The toy's logits are W h for two tokens, W = 0, so p = (1/2, 1/2) and the gradient of -log p(y) with respect to row k of W is
(1/2 - [k = y]) h: the square is h²/4 in both rows, whatever y is. A question is the number of its h, an answer the ys.
"""

import json

import pytest
import torch
from torch import nn

from mmunlearn.config import SaliencyConfig
from mmunlearn.config_enums import Modules, Per, Reduction, Rule
from mmunlearn.data.batch import IGNORE, Encoded
from mmunlearn.data.example import Example, LazyImage
from mmunlearn.errors import ConfigError, DataError, RunError
from mmunlearn.models.families import LLAVA
from mmunlearn.models.saliency_mask import load_mask, mask_of, save_mask
from mmunlearn.saliency import gradients
from mmunlearn.saliency.estimate import SaliencyData, saliency_mask

H = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 0.0], [4.0, 0.0, 0.0, 0.0]])
"""Feature 0 is used by all, 1 by question 1, 2 by question 3, feature 3 by none."""


class Toy(nn.Module):
    """Looks up h of each token and multiplies with W."""

    def __init__(self):
        super().__init__()
        self.lm_head = nn.Linear(4, 2, bias=False)
        nn.init.zeros_(self.lm_head.weight)

    def forward(self, input_ids, logits_to_keep, use_cache):
        return type("Output", (), {"logits": self.lm_head(H[input_ids][logits_to_keep])})


class ToyEncoder:
    """Tokens [question, answer…]; the last answer token has no successor, so all h before it count."""

    pad_token_id, answer_only = 0, True

    def __call__(self, example):
        tokens = [int(example.question), *map(int, example.answer.split())]
        ids = torch.tensor(tokens)
        labels = torch.tensor([IGNORE, *tokens[1:]])
        return Encoded(id=example.id, inputs={"input_ids": ids[None]}, labels=labels)


def examples(*questions, answer="1"):
    return tuple(Example(id=f"{number}", question=str(question), answer=answer) for number, question in enumerate(questions))


def mask_of_toy(forget, preserve, **settings):
    data = SaliencyData(forget=forget, preserve_language=preserve)
    return saliency_mask(Toy(), LLAVA, ToyEncoder(), data, SaliencyConfig(**settings))


def rows(mask):
    return mask.tensor("lm_head.weight").tolist()


def test_ratio_by_hand():
    """F_f = mean(1, 9)/4, mean(4, 0)/4, 0, 0; F_p = mean(4, 16)/4, 0, mean(1, 0)/4, 0."""
    forget, preserve = examples(1, 2), examples(3, 4)
    assert rows(mask_of_toy(forget, preserve)) == [[False, True, False, False]] * 2
    assert rows(mask_of_toy(forget, preserve, threshold=0.5)) == [[True, True, False, False]] * 2  # 5 >= 0.5 * 10, a tie
    assert rows(mask_of_toy(forget, preserve, threshold=0.51)) == [[False, True, False, False]] * 2
    # With an epsilon 0/0 counts as 1.
    assert rows(mask_of_toy(forget, preserve, epsilon=1e-15)) == [[False, True, False, True]] * 2
    assert rows(mask_of_toy(forget, preserve, epsilon=1e-15, threshold=1.5)) == [[False, True, False, False]] * 2
    # (0 + 1) >= 1.2 * (1/8 + 1) is false, >= 0.8 * (1/8 + 1) = 0.9 true; feature 0: 1.25 + 1 >= 0.8 * (2.5 + 1) false.
    assert rows(mask_of_toy(forget, preserve, epsilon=1.0, threshold=0.8)) == [[False, True, True, True]] * 2


def test_card_of_the_toy():
    card = mask_of_toy(examples(1, 2), examples(3, 4)).card
    assert card["parts"] == {"language": {"selected": 2, "covered": 8, "zero_over_zero": 2}}
    assert card["examples"] == {"forget": 2, "preserve_language": 2, "preserve_vision": 0}
    assert (card["rule"], card["threshold"], card["epsilon"], card["per"], card["loss"]) == (
        "fisher_ratio", 1.0, 0.0, "example", "mean",
    )  # fmt: skip
    assert json.loads(json.dumps(card)) == card


def test_squares_of_batches_differ_from_squares_of_examples_as_they_should():
    """Forget h0 = 1, 3 with equal ys: per example (1 + 9)/2 = 5, per batch ((1 + 3)/2)² = 4; preserve h0 = 2, 2: 4 both ways.

    A threshold of 1.1 lies between 4/4 and 5/4.
    """
    forget, preserve = examples(1, 2), examples(3, 3)
    assert rows(mask_of_toy(forget, preserve, threshold=1.1))[0][0]
    assert not rows(mask_of_toy(forget, preserve, threshold=1.1, per=Per.batch, batch_size=2))[0][0]
    assert rows(mask_of_toy(forget, preserve, threshold=1.1, per=Per.batch, batch_size=1))[0][0]
    # A sum over the batch: (1 + 3)² = 16 against (2 + 2)² = 16.
    summed = {"per": Per.batch, "batch_size": 2, "loss": Reduction.sum}
    assert rows(mask_of_toy(forget, preserve, threshold=0.99, **summed))[0][0]
    assert not rows(mask_of_toy(forget, preserve, threshold=1.01, **summed))[0][0]


def test_token_mean_and_token_sum():
    """Question 2, answer "1 1": h0 = 3 and 1, both y = 1; mean 2, sum 4. Question 2, answer "1": 3. So 4, 16 against 9."""
    forget, preserve = examples(2, 2, answer="1 1"), examples(2, 2)
    assert not rows(mask_of_toy(forget, preserve))[0][0]
    assert rows(mask_of_toy(forget, preserve, threshold=0.44))[0][0]
    assert not rows(mask_of_toy(forget, preserve, threshold=0.45))[0][0]
    assert rows(mask_of_toy(forget, preserve, threshold=1.77, loss=Reduction.sum))[0][0]
    assert not rows(mask_of_toy(forget, preserve, threshold=1.78, loss=Reduction.sum))[0][0]


def test_forget_gradient_by_hand():
    """Sums of gradients, halved: feature 0: 1 + 3 + 2, feature 1: 2, feature 2: 1, in both rows."""
    forget = examples(1, 2, 3)
    found = [rows(mask_of_toy(forget, (), rule=Rule.forget_gradient, density=density)) for density in (0.25, 0.5, 0.75, 0.625)]
    assert found[0] == [[True, False, False, False]] * 2
    assert found[1] == [[True, True, False, False]] * 2
    assert found[2] == [[True, True, True, False]] * 2
    assert found[3] == [[True, True, True, False], [True, True, False, False]]  # of equals the first
    with pytest.raises(RunError, match=r"saliency\.density=0\.9"):
        mask_of_toy(forget, (), rule=Rule.forget_gradient, density=0.9)


def test_gradients_of_opposite_sign_cancel_in_the_sum_only():
    forget = (*examples(2, answer="1"), Example(id="b", question="2", answer="0"), *examples(1))
    salun = mask_of_toy(forget, (), rule=Rule.forget_gradient, density=0.25)
    assert rows(salun) == [[False, True, False, False]] * 2
    assert rows(mask_of_toy(forget, examples(1, 1)))[0][0]


@pytest.fixture
def toy_in_float16(monkeypatch):
    """Question 5 has h = 2^-24 in feature 3; the gradient of a mean over such is 2^-25, which float16 rounds to 0."""
    tiny = torch.tensor([[0.0, 0.0, 0.0, 2.0**-24]])
    monkeypatch.setitem(globals(), "H", torch.cat([H, tiny]).half())
    return Toy().half()


def half_mask(toy, forget, preserve, **settings):
    data = SaliencyData(forget=forget, preserve_language=preserve)
    return saliency_mask(toy, LLAVA, ToyEncoder(), data, SaliencyConfig(**settings))


@pytest.mark.parametrize("scales", [None, (2.0**40, 2.0**6, 1.0)])
@pytest.mark.parametrize("per", list(Per))
def test_float16_neither_underflows_nor_overflows(toy_in_float16, monkeypatch, per, scales):
    monkeypatch.setattr(gradients, "SCALES", scales or gradients.SCALES)
    mask = half_mask(toy_in_float16, examples(5, 5, 5, 5), examples(1, 1, 1, 1), per=per)
    assert rows(mask) == [[False, False, False, True]] * 2


@pytest.mark.parametrize("per", list(Per))
def test_the_loss_scale_of_float16_is_undone_before_epsilon_is_added(toy_in_float16, per):
    settings = {"epsilon": 1.0, "threshold": 0.8, "per": per, "batch_size": 1}
    mask = half_mask(toy_in_float16, examples(1, 2), examples(3, 4), **settings)
    assert rows(mask) == [[False, True, True, True]] * 2  # as in test_ratio_by_hand


@pytest.mark.parametrize(
    ("forget", "preserve", "word"), [((), examples(1), "to be forgotten"), (examples(1), (), "to be retained")]
)
def test_an_empty_set_is_refused(forget, preserve, word):
    with pytest.raises(DataError, match=word):
        mask_of_toy(forget, preserve)


def test_quantised_weights_are_refused():
    toy = Toy()
    toy.lm_head.weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"lm_head\.weight is quantised"):
        saliency_mask(toy, LLAVA, ToyEncoder(), SaliencyData(forget=examples(1)), SaliencyConfig())


def test_data_fingerprint_sees_questions_answers_and_pictures():
    first = Example(id="a", question="1", answer="1")
    picture = LazyImage(key="p", where="p", read=bytes)
    sets = [
        SaliencyData(forget=(first,)),
        SaliencyData(preserve_language=(first,)),
        SaliencyData(forget=(Example(id="a", question="2", answer="1"),)),
        SaliencyData(forget=(Example(id="a", question="1", answer="0"),)),
        SaliencyData(forget=(Example(id="a", question="1", answer="1", image=picture),)),
    ]
    assert len({own.fingerprint() for own in sets}) == len(sets)


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def like(model):
    """A mask of the language part with another density in each tensor."""
    dice = torch.Generator().manual_seed(0)
    own = [(name, p) for name, p in model.named_parameters() if name.startswith(("model.language_model.", "lm_head."))]
    tensors = {name: torch.rand(p.shape, generator=dice) < number / len(own) for number, (name, p) in enumerate(own)}
    return mask_of(tensors, {"modules": "language"})


def control(model, like, rule, seed=0, modules=Modules.language):
    settings = SaliencyConfig(rule=rule, modules=modules, like="somewhere")
    return saliency_mask(model, LLAVA, ToyEncoder(), SaliencyData(), settings, seed=seed, like=like)


@pytest.mark.parametrize("rule", [Rule.random, Rule.magnitude])
def test_controls_copy_the_count_of_each_tensor(model, like, rule):
    mask = control(model, like, rule)
    assert mask.bits.keys() == like.bits.keys()
    assert {name: mask.selected(name) for name in mask.bits} == {name: like.selected(name) for name in like.bits}
    again = control(model, like, rule)
    assert all(torch.equal(mask.bits[name], again.bits[name]) for name in mask.bits)


def test_magnitude_selects_the_largest(model, like):
    mask = control(model, like, Rule.magnitude)
    for name, parameter in model.named_parameters():
        if name in mask.bits and 0 < mask.selected(name) < mask.size(name) and parameter.dim() == 2:
            chosen, weights = mask.tensor(name), parameter.detach().abs()
            assert weights[chosen].min() >= weights[~chosen].max()


def test_random_is_decided_by_the_seed_and_even(model, like):
    first, second = control(model, like, Rule.random), control(model, like, Rule.random, seed=1)
    name = "lm_head.weight"
    assert not torch.equal(first.bits[name], second.bits[name])
    size = first.size(name)
    share = first.selected(name) / size
    upper = first.tensor(name)[: len(first.tensor(name)) // 2].float().mean()
    assert float(upper) == pytest.approx(share, abs=4 * (share * (1 - share) / (size / 2)) ** 0.5 + 1e-9)
    assert first.card["seed"] == 0


def test_random_masks_of_tensors_of_one_shape_differ(model):
    halves = {
        name: (torch.arange(p.numel()) % 2 == 0).view(p.shape)
        for name, p in model.named_parameters()
        if name.startswith(("model.language_model.", "lm_head."))
    }
    mask = control(model, mask_of(halves, {}), Rule.random)
    layer = "model.language_model.layers.0.mlp."
    assert not torch.equal(mask.bits[f"{layer}gate_proj.weight"], mask.bits[f"{layer}up_proj.weight"])


def test_a_control_of_other_modules_or_another_model_is_refused(model, like):
    with pytest.raises(ConfigError, match=r"saliency\.modules=both, but saliency\.like covers other tensors"):
        control(model, like, Rule.random, modules=Modules.both)
    name = "lm_head.weight"
    other = mask_of({**{n: like.tensor(n) for n in like.bits}, name: torch.ones(3, 3, dtype=torch.bool)}, {})
    with pytest.raises(ConfigError, match=r"another model: lm_head\.weight"):
        control(model, other, Rule.magnitude)


def test_a_mask_takes_one_bit_a_weight_on_disk(model, like, tmp_path):
    mask = control(model, like, Rule.random)
    save_mask(mask, tmp_path / "mask.safetensors")
    header = 8 + int.from_bytes((tmp_path / "mask.safetensors").read_bytes()[:8], "little")
    weights = sum(map(mask.size, mask.bits))
    assert (tmp_path / "mask.safetensors").stat().st_size - header <= 0.13 * weights
    found = load_mask(tmp_path / "mask.safetensors")
    assert found.card == mask.card
    assert all(torch.equal(found.bits[name], mask.bits[name]) for name in mask.bits)
