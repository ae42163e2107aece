"""Each method against a reference that shares no code with it: loops over tokens, closed forms, finite differences."""

import copy
import gc
import math
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_cases import (
    FULL,
    LORA,
    Setup,
    batch_of,
    encoder_for,
    flat,
    make_examples,
    relative_difference,
    tiny_model,
    training_of,
)
from torch.nn.functional import kl_div, pad

from mmunlearn.config import Lora, PartTuning, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.batch import IGNORE
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.methods.base import Prepared, TrainingData
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.methods.grad_diff import GradDiff, RetainLoss
from mmunlearn.methods.kl_min import KLMin, Positions
from mmunlearn.methods.losses import answer_kl, answer_nll, everywhere_kl
from mmunlearn.methods.npo import NPO, Unit, batch_npo, npo
from mmunlearn.methods.preference import PO
from mmunlearn.methods.refusals import REFUSALS
from mmunlearn.methods.salun import SalUn
from mmunlearn.models.families import LLAVA
from mmunlearn.models.reference import Reference
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.run import read_json_lines
from mmunlearn.training.loop import Windows
from mmunlearn.training.optimizer import build_optimizer

BETAS = (0.1, 0.4, 3.0)
NO_DROPOUT = Lora(r=4, alpha=8, dropout=0.0)


@pytest.fixture(scope="module")
def other():
    """Another model than the one in training."""
    return tiny_model(seed=1)[0].eval().requires_grad_(False)


@pytest.fixture
def batch(processor, examples):
    return batch_of(processor, *examples)


@pytest.fixture
def reference_of(processor):
    def make(model, **settings):
        return Reference(model=model, encoder=encoder_for(processor), **settings)

    return make


def token_log_probs(model, batch):
    """log p of each supervised token, a list for each sequence, by plain arithmetic on full logits."""
    with torch.no_grad():
        logits = model(**batch.inputs).logits.double().tolist()
    found = []
    for row, labels in zip(logits, batch.labels.tolist(), strict=True):
        found.append([])
        for position in range(1, len(labels)):
            if labels[position] != IGNORE:
                scores = row[position - 1]
                highest = max(scores)
                total = math.log(sum(math.exp(score - highest) for score in scores)) + highest
                found[-1].append(scores[labels[position]] - total)
    return found


def gradient_of(loss, model):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- NPO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
def test_npo_against_a_loop_over_tokens(beta, model, other, batch, examples, reference_of):
    prepared = NPO(beta=beta).prepare(model, reference_of(other), TrainingData(forget=examples))
    ratios = [
        sum(now) - sum(before) for now, before in zip(token_log_probs(model, batch), token_log_probs(other, batch), strict=True)
    ]
    assert max(ratios) - min(ratios) > 1
    expected = sum(2 / beta * math.log(1 + math.exp(beta * ratio)) for ratio in ratios) / len(ratios)
    assert npo(model, batch, prepared, beta=beta).item() == pytest.approx(expected, rel=1e-5)
    share = replace(batch, step_sequences=4 * batch.step_sequences, step_tokens=7 * batch.step_tokens)
    assert npo(model, share, prepared, beta=beta).item() == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("unit", [Unit.sequence, Unit.batch])
def test_npo_of_the_reference_itself_is_two_log_two_over_beta(beta, unit, model, batch, examples, reference_of):
    method = NPO(beta=beta, unit=unit)
    prepared = method.prepare(model, reference_of(model, batch_size=3), TrainingData(forget=examples))
    (term,) = method.terms()
    assert term.loss(model, batch, prepared).item() == pytest.approx(2 * math.log(2) / beta, rel=2e-5)


def test_npo_becomes_ascent_on_summed_log_likelihoods_as_beta_goes_to_zero(model, other, batch, examples, reference_of):
    """d/dr of (2 / beta) log(1 + exp(beta r)) is 2 sigmoid(beta r), which goes to 1: the gradient is that of the mean over B
    sequences of log p. Ascent minimises the sum of log p over N tokens; the factor between the two is N / B."""
    prepared = NPO().prepare(model, reference_of(other), TrainingData(forget=examples))
    ascent = gradient_of(-answer_nll(model, batch, Prepared()), model)
    expected = {name: value * batch.step_tokens / batch.step_sequences for name, value in ascent.items()}
    distances = [
        relative_difference(gradient_of(npo(model, batch, prepared, beta=beta), model), expected) for beta in (0.1, 1e-2, 1e-3)
    ]
    assert distances[0] > 0.05
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-2


def test_gradient_of_npo_weighs_each_answer_by_what_is_left_of_it(model, other, batch, examples, reference_of):
    """2 sigmoid(beta r): nothing for an answer that is forgotten, twice the ascent for one far above the reference."""
    beta = 0.3
    for shift, weight in ((1e4, 0.0), (-1e4, 2.0)):
        stored = NPO().prepare(model, reference_of(other), TrainingData(forget=examples)).log_likelihoods
        prepared = Prepared(log_likelihoods={name: value + shift for name, value in stored.items()})
        found = gradient_of(npo(model, batch, prepared, beta=beta), model)
        ascent = gradient_of(-answer_nll(model, batch, Prepared()), model)
        scale = weight * batch.step_tokens / batch.step_sequences
        torch.testing.assert_close(flat(found), scale * flat(ascent), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["npo", "batch_npo", "kl", "everywhere"])
def test_gradients_by_finite_differences(loss, model, other, batch, examples, reference_of):
    reference = reference_of(other)
    prepared = replace(NPO().prepare(model, reference, TrainingData(forget=examples)), reference=reference)
    functions = {
        "npo": lambda: npo(model, batch, prepared, beta=0.3),
        "batch_npo": lambda: batch_npo(model, batch, prepared, beta=3.0),
        "kl": lambda: answer_kl(model, batch, prepared),
        "everywhere": lambda: everywhere_kl(model, batch, prepared),
    }
    compute = functions[loss]
    gradient = gradient_of(compute(), model)
    named = dict(model.named_parameters())
    chosen = (
        "lm_head.weight",
        "model.multi_modal_projector.linear_1.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    )
    for name in chosen:
        place = int(gradient[name].abs().argmax())
        weight, expected = named[name].data.view(-1), gradient[name].view(-1)[place].item()
        step, start, values = 1e-2, weight[place].item(), []
        for sign in (1, -1):
            weight[place] = start + sign * step
            with torch.no_grad():
                values.append(compute().item())
        weight[place] = start
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=0.03), name


@pytest.mark.parametrize("beta", BETAS)
def test_npo_per_batch_is_the_formula_of_the_published_scripts(beta, model, other, batch, examples, reference_of):
    """-(2 / beta) log sigmoid(-beta (L_ref - L)), L the mean loss over all answer tokens, as their models return it."""
    method = NPO(beta=beta, unit=Unit.batch)
    prepared = method.prepare(model, reference_of(other), TrainingData(forget=examples))
    with torch.no_grad():
        now, before = (each(**batch.inputs, labels=batch.labels).loss for each in (model, other))
        expected = -2 / beta * torch.nn.functional.logsigmoid(-beta * (before - now))
    assert batch_npo(model, batch, prepared, beta=beta).item() == pytest.approx(expected.item(), rel=1e-5)


def test_npo_per_batch_refuses_a_step_that_is_split(data, make_training):
    training = make_training(NPO(unit=Unit.batch), batch_size=4, accumulation=2, args={"max_steps": 1})
    with pytest.raises(ConfigError, match=r"unit=batch.*gradient_accumulation_steps=1"):
        training.run()
    make_training(NPO(unit=Unit.batch), batch_size=4, args={"max_steps": 2}).run()


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_npo_needs_a_positive_beta(beta):
    with pytest.raises(ConfigError, match="beta"):
        NPO(beta=beta)


def test_npo_has_a_retain_term_only_with_a_weight():
    assert [(term.name, term.weight) for term in NPO().terms()] == [("npo", 1.0)]
    assert [(term.name, term.weight) for term in NPO(retain_weight=0.5).terms()] == [("npo", 1.0), ("retain", 0.5)]


# --- KL --------------------------------------------------------------------------------------------------------------


def kl_by_hand(model, reference, batch):
    """Sum over supervised tokens and the vocabulary of p0 (log p0 - log p), by plain arithmetic."""
    total = 0.0
    with torch.no_grad():
        rows = [each(**batch.inputs).logits.double().tolist() for each in (reference, model)]
    for before, now, labels in zip(*rows, batch.labels.tolist(), strict=True):
        for position in range(1, len(labels)):
            if labels[position] != IGNORE:
                p0, p = ([math.exp(score) for score in scores[position - 1]] for scores in (before, now))
                sum0, sum1 = sum(p0), sum(p)
                total += sum(a / sum0 * math.log(a / sum0 * sum1 / b) for a, b in zip(p0, p, strict=True))
    return total


@pytest.mark.parametrize("method", [KLMin(), GradDiff(retain_loss=RetainLoss.kl)], ids=["KLMin", "GradDiff"])
def test_kl_against_a_loop_over_tokens(method, model, other, batch, reference_of):
    prepared = method.prepare(model, reference_of(other), TrainingData())
    term = method.terms()[1]
    expected = kl_by_hand(model, other, batch) / int((batch.labels != IGNORE).sum())
    assert expected > 0.05
    assert abs(expected - kl_by_hand(other, model, batch) / batch.step_tokens) > 1e-3, "the direction matters"
    assert term.loss(model, batch, prepared).item() == pytest.approx(expected, rel=1e-5)
    share = replace(batch, step_tokens=4 * batch.step_tokens, step_sequences=7 * batch.step_sequences)
    assert term.loss(model, share, prepared).item() == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize("loss", [answer_kl, everywhere_kl])
def test_kl_of_a_model_with_itself_is_zero_with_its_gradient(loss, model, other, batch, reference_of):
    found = loss(model, batch, Prepared(reference=reference_of(model).kept()))
    assert found.item() == pytest.approx(0, abs=1e-6)
    away = gradient_of(loss(model, batch, Prepared(reference=reference_of(other))), model)
    assert flat(gradient_of(loss(model, batch, Prepared(reference=reference_of(model).kept())), model)).norm() < (
        1e-5 * flat(away).norm()
    )


def longer(batch, extra):
    """The same sequences with more padding."""
    inputs = {
        key: pad(value, (0, extra)) if value.shape == batch.labels.shape else value for key, value in batch.inputs.items()
    }
    return replace(batch, inputs=inputs, labels=pad(batch.labels, (0, extra), value=IGNORE))


def test_kl_does_not_depend_on_padding_but_the_published_form_does(model, other, batch, reference_of):
    prepared = Prepared(reference=reference_of(other))
    with torch.no_grad():
        for loss, change in ((answer_kl, 0.0), (everywhere_kl, None)):
            short, long = (loss(model, each, prepared).item() for each in (batch, longer(batch, 9)))
            if change is None:
                assert long > 1.01 * short
            else:
                assert long == pytest.approx(short, rel=1e-5)


class Table(torch.nn.Module):
    """A stand-in for a model: its logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, logits_to_keep=None, **inputs):
        return SimpleNamespace(logits=self.logits if logits_to_keep is None else self.logits[logits_to_keep][None])


def test_kl_looks_at_the_supervised_tokens_alone(batch, reference_of):
    dice = torch.Generator().manual_seed(0)
    now, before = (torch.randn(*batch.labels.shape, 11, generator=dice) for _ in range(2))
    predicts = torch.zeros_like(batch.labels, dtype=torch.bool)
    predicts[:, :-1] = batch.labels[:, 1:] != IGNORE
    prepared = Prepared(reference=reference_of(Table(before).requires_grad_(False)))
    found = answer_kl(table := Table(now), batch, prepared)
    elsewhere = torch.where(predicts[..., None], now, 5 * torch.randn(now.shape, generator=dice))
    assert answer_kl(Table(elsewhere), batch, prepared).item() == found.item()
    gradient = gradient_of(found, table)["logits"]
    assert gradient[~predicts].abs().max() == 0
    assert (gradient[predicts].abs().sum(dim=-1) > 0).all()
    there = torch.where(predicts[..., None], 2 * now, now)
    assert answer_kl(Table(there), batch, prepared).item() != pytest.approx(found.item(), rel=1e-3)


def test_kl_everywhere_is_torchs_batchmean_over_full_logits(model, other, batch, reference_of):
    method = KLMin(positions=Positions.everywhere)
    prepared = method.prepare(model, reference_of(other), TrainingData())
    with torch.no_grad():
        now, before = (each(**batch.inputs).logits.log_softmax(dim=-1) for each in (model, other))
        expected = kl_div(now, before, reduction="batchmean", log_target=True).item()
        per_token = answer_kl(model, batch, prepared).item()
    found = method.terms()[1].loss(model, batch, prepared)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert found.item() > 10 * per_token, "all T positions of a sequence, not a mean over tokens"
    share = replace(batch, step_sequences=4 * batch.step_sequences, step_tokens=7 * batch.step_tokens)
    assert everywhere_kl(model, share, prepared).item() == pytest.approx(expected / 4, rel=1e-5)


# --- the reference ---------------------------------------------------------------------------------------------------

PROJECTOR = Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.freeze))
BOTH = Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.lora))


def shaken(model):
    """Move every trained weight, as training does."""
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=dice))
    return model


def storage_bytes():
    """Bytes of all tensors that are alive, shared memory counted once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize(
    ("tune", "copied"),
    [
        pytest.param(LORA, (), marks=pytest.mark.thorough, id="lora"),
        pytest.param(PROJECTOR, ("multi_modal_projector",), marks=pytest.mark.thorough, id="projector"),
        pytest.param(BOTH, ("multi_modal_projector",), id="both"),
        pytest.param(FULL, None, marks=pytest.mark.thorough, id="full"),
    ],
)
def test_the_reference_stays_what_the_model_was(tune, copied, model, batch, reference_of):
    before = copy.deepcopy(model)
    tuned = apply_tuning(model, LLAVA, tune, Lora(r=4, alpha=8, dropout=0.5))
    memory = storage_bytes()
    reference = reference_of(tuned).kept()
    grown = storage_bytes() - memory
    expected = sum(
        p.numel() * p.element_size()
        for name, p in tuned.named_parameters()
        if p.requires_grad and (copied is None or any(mark in name for mark in copied))
    )
    assert grown == pytest.approx(expected, abs=64)
    assert not list(reference.model.parameters())
    shaken(tuned).train()
    with torch.no_grad():
        assert torch.equal(reference.all_logits(batch), before(**batch.inputs).logits.float())
        assert not torch.allclose(tuned(**batch.inputs).logits, before(**batch.inputs).logits, atol=1e-3)
    assert tuned.training, "the model goes on in training mode"
    assert all(module.training for module in tuned.modules())


def test_another_model_is_not_copied(model, other, reference_of):
    memory = storage_bytes()
    reference = reference_of(other).kept()
    assert storage_bytes() - memory < 64
    assert reference.model is other


@pytest.mark.parametrize("tune", [LORA, BOTH, FULL], ids=["lora", "both", "full"])
def test_asking_the_reference_changes_nothing_about_the_model(tune, model, batch, reference_of):
    """PEFT marks adapters as frozen while they are switched off."""
    tuned = shaken(apply_tuning(model, LLAVA, tune, NO_DROPOUT)).train()
    answer_nll(tuned, batch, Prepared()).backward()
    before = {name: (p.requires_grad, p.detach().clone(), p.grad) for name, p in tuned.named_parameters()}
    gradients = {name: grad.clone() for name, (_, _, grad) in before.items() if grad is not None}
    assert gradients
    reference = reference_of(tuned).kept()
    assert not reference.answer_logits(batch).requires_grad
    assert not reference.all_logits(batch).requires_grad
    reference_of(tuned).log_likelihoods(make_examples("case", 3))
    for name, parameter in tuned.named_parameters():
        requires_grad, value, grad = before[name]
        assert parameter.requires_grad == requires_grad
        assert torch.equal(parameter, value)
        assert parameter.grad is grad
        assert grad is None or torch.equal(grad, gradients[name])
    assert tuned.training


@pytest.mark.parametrize("tune", [LORA, BOTH, FULL], ids=["lora", "both", "full"])
def test_gradients_of_kl_with_the_model_itself_are_those_with_a_copy(tune, model, batch, reference_of):
    vanilla = copy.deepcopy(model).eval()
    tuned = apply_tuning(model, LLAVA, tune, NO_DROPOUT)
    kept = reference_of(tuned).kept()
    shaken(tuned).train()
    found = gradient_of(answer_kl(tuned, batch, Prepared(reference=kept)), tuned)
    expected = gradient_of(answer_kl(tuned, batch, Prepared(reference=reference_of(vanilla))), tuned)
    assert found.keys() == {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert flat(expected).norm() > 0.1
    assert relative_difference(found, expected) < 1e-6
    again = gradient_of(answer_kl(tuned, batch, Prepared(reference=kept)), tuned)
    assert torch.equal(flat(again), flat(found))


@pytest.mark.parametrize("tune", [LORA, FULL], ids=["lora", "full"])
def test_the_reference_does_not_move_while_the_loop_trains(tune, batch, data, make_training, model):
    before = copy.deepcopy(model)
    args = {"max_steps": 3, "learning_rate": 1e-2}
    training = make_training(KLMin(), tune=tune, lora=Lora(r=4, dropout=0.2), optimizer=build_optimizer, args=args)
    reference = training.prepared.reference
    training.run()
    with torch.no_grad():
        assert torch.equal(reference.all_logits(batch), before(**batch.inputs).logits.float())
        assert not torch.allclose(training.model(**batch.inputs).logits, before(**batch.inputs).logits, atol=1e-3)


def test_likelihoods_of_the_reference_are_sums_over_answers_without_dropout(model, batch, examples, reference_of):
    tuned = shaken(apply_tuning(model, LLAVA, LORA, Lora(r=4, alpha=8, dropout=0.5)))
    expected = [sum(values) for values in token_log_probs(tuned.eval(), batch)]
    tuned.train()
    for batch_size in (1, 3, 8):
        found = reference_of(tuned, batch_size=batch_size).log_likelihoods(examples)
        assert list(found) == [example.id for example in examples]
        assert list(found.values()) == pytest.approx(expected, rel=1e-5)
    assert tuned.training


def count_calls(model):
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls


def test_stored_likelihoods_are_not_computed_again(model, examples, reference_of):
    calls = count_calls(model)
    found = reference_of(model, batch_size=4).log_likelihoods(examples)
    assert len(calls) == 2
    assert reference_of(model, stored=found).log_likelihoods(examples) == found
    assert len(calls) == 2
    some = {name: 7.0 for name in list(found)[:5]}
    mixed = reference_of(model, batch_size=4, stored=some).log_likelihoods(examples)
    assert len(calls) == 3
    assert mixed == pytest.approx({**found, **some}, rel=1e-5)


@pytest.mark.parametrize("method", [NPO(beta=0.3), KLMin(), GradDiff(retain_loss=RetainLoss.kl)], ids=["NPO", "KL", "GradDiff"])
def test_another_reference_gives_other_numbers(method, make_training, other):
    def raw(**settings):
        training = make_training(method, args={"max_steps": 1}, **settings)
        training.run()
        terms = read_json_lines(training.log.path)[-1]["terms"]
        return terms["npo" if "npo" in terms else method.terms()[1].name]["raw"]

    assert abs(raw() - raw(reference=other)) > 0.05


# --- other answers ---------------------------------------------------------------------------------------------------


def answers_in_training(training, processor):
    """What the forget batches of an epoch teach, decoded, by example id."""
    found = {}
    for window in (Windows(training.plan, training.data, training.encoder)[step] for step in range(training.plan.total_steps)):
        for pair in window:
            for name, labels in zip(pair.forget.ids, pair.forget.labels, strict=True):
                found[name] = processor.tokenizer.decode(labels[labels != IGNORE], skip_special_tokens=True).strip()
    return found


def test_preference_trains_the_refusals(data, make_training, processor):
    def learned(seed):
        training = make_training(PO(), batch_size=4, seed=seed, args={"num_train_epochs": 1})
        found = answers_in_training(training, processor)
        assert [example.answer for example in training.data.retain] == [example.answer for example in data.retain]
        assert [replace(e, answer="") for e in training.data.forget] == [replace(e, answer="") for e in data.forget]
        return found

    found = learned(0)
    assert found.keys() == {example.id for example in data.forget}
    assert set(found.values()) <= set(REFUSALS)
    assert len(set(found.values())) > 1
    assert learned(0) == found
    assert learned(1) != found


def test_preference_gives_an_example_its_refusal_whatever_stands_beside_it(data):
    together = PO().relabelled(data, 3)
    assert PO().relabelled(TrainingData(forget=data.forget[4:]), 3).forget == together.forget[4:]


def many_examples():
    """Thirty people; of three questions each, one answered alike by all."""
    dice = random.Random(4)
    return tuple(
        Example(id=f"{person}/{question}", question=question, answer=answer, subject=str(person))
        for person in range(30)
        for question, answer in (
            ("Where does this person live?", dice.choice(("Lima", "Paris", "Oslo", "Rome"))),
            ("Is this person a human?", "Yes"),
            (f"Who is number {person}?", f"Number {person}"),
        )
    )


@pytest.mark.parametrize("seed", range(4))
def test_salun_never_trains_the_true_answer_and_prefers_the_same_question(seed):
    forget = many_examples()
    found = SalUn().relabelled(TrainingData(forget=forget), seed).forget
    everything = {example.answer for example in forget}
    for before, after in zip(forget, found, strict=True):
        assert replace(after, answer="") == replace(before, answer="")
        assert after.answer != before.answer
        assert after.answer in everything
        to_the_same = {each.answer for each in forget if each.question == before.question} - {before.answer}
        assert not to_the_same or after.answer in to_the_same
    assert found == SalUn().relabelled(TrainingData(forget=forget), seed).forget


def test_salun_draws_evenly_and_by_seed():
    forget = tuple(
        Example(id=str(number), question="Where?", answer=("Lima", "Paris", "Oslo", "Rome")[number % 4])
        for number in range(400)
    )
    found = {seed: SalUn().relabelled(TrainingData(forget=forget), seed).forget for seed in (0, 1)}
    assert found[0] != found[1]
    counts = Counter((before.answer, after.answer) for before, after in zip(forget, found[0], strict=True))
    assert len(counts) == 12
    assert min(counts.values()) > 15


def test_salun_needs_two_answers():
    forget = tuple(replace(example, answer="Paris") for example in make_examples("forget", 3))
    with pytest.raises(DataError, match="all forget answers are the same"):
        SalUn().relabelled(TrainingData(forget=forget), 0)


def test_retain_answers_stay_what_they_are(data):
    assert SalUn().relabelled(data, 0).retain == data.retain


def test_ascent_prepares_nothing(model, data, reference_of):
    calls = count_calls(model)
    for method in (GradAscent(), GradDiff(), PO(), SalUn()):
        prepared = method.prepare(model, reference_of(model), data)
        assert prepared.reference is None
        assert not prepared.log_likelihoods
    assert not calls


def test_a_step_from_the_reference_is_the_same_for_npo_as_for_ascent_per_answer(data, pristine, tmp_path):
    """At r = 0 every answer weighs 2 sigmoid(0) = 1, whatever beta is."""
    found = []
    for beta in (0.1, 2.0):
        training = training_of(Setup(NPO(beta=beta), data, *copy.deepcopy(pristine), tmp_path, args={"max_steps": 1}))
        training.run()
        found.append(training.optimizer.caught[0])
    assert relative_difference(found[0], found[1]) < 1e-4
