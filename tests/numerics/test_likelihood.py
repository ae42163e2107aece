"""The one place that owns logits_to_keep, the shift and the log-softmax, against full logits and plain arithmetic."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_cases import batch_of, encoder_for

from mmunlearn.data.batch import IGNORE, collate
from mmunlearn.models.likelihood import (
    answer_log_probs,
    answer_logits,
    answer_statistics,
    answer_tokens,
    sequence_counts,
    sequence_sums,
)


@pytest.fixture
def batch(processor, examples):
    return batch_of(processor, *examples)


def supervised(batch):
    """(row, position) of every supervised token, row by row, left to right."""
    return [(row, t) for row, labels in enumerate(batch.labels.tolist()) for t, label in enumerate(labels) if label != IGNORE]


def brute_force_rows(model, batch):
    """log p over the vocabulary at each position that predicts a supervised token: float64, from full logits."""
    with torch.no_grad():
        logits = model(**batch.inputs).logits.double()
    return [torch.log_softmax(logits[row, position - 1], dim=-1) for row, position in supervised(batch)]


def test_logits_are_those_that_predict_the_supervised_tokens(model, batch):
    with torch.no_grad():
        full = model(**batch.inputs).logits
        found = answer_logits(model, batch)
    expected = torch.stack([full[row, position - 1] for row, position in supervised(batch)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert answer_tokens(batch).tolist() == [int(batch.inputs["input_ids"][where]) for where in supervised(batch)]


def test_log_probabilities_against_full_logits(model, batch):
    rows = brute_force_rows(model, batch)
    expected = [float(row[token]) for row, token in zip(rows, answer_tokens(batch), strict=True)]
    with torch.no_grad():
        found = answer_log_probs(model, batch)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(found.tolist())) > len(expected) // 2, "numbers that differ, or alignment would not be tested"


def test_question_tokens_can_be_scored_too(model, processor, examples):
    batch = batch_of(processor, *examples, answer_only=False)
    rows = brute_force_rows(model, batch)
    expected = [float(row[token]) for row, token in zip(rows, answer_tokens(batch), strict=True)]
    with torch.no_grad():
        assert answer_log_probs(model, batch).tolist() == pytest.approx(expected, abs=1e-5)


def test_half_precision_logits_are_scored_in_float32(model, batch):
    with torch.no_grad():
        found = answer_log_probs(model.to(torch.bfloat16), replace(batch, inputs=in_bfloat16(batch.inputs)))
    assert found.dtype == torch.float32
    assert bool((found < 0).all())


def in_bfloat16(inputs):
    return {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in inputs.items()}


def test_sums_over_sequences(batch):
    values = torch.arange(1.0, 1.0 + len(supervised(batch)))
    expected = [0.0] * len(batch.ids)
    for value, (row, _) in zip(values.tolist(), supervised(batch), strict=True):
        expected[row] += value
    assert sequence_sums(values, batch).tolist() == expected
    assert sequence_counts(batch).tolist() == [sum(row == other for other, _ in supervised(batch)) for row in range(8)]


def test_a_sequence_without_supervised_tokens_sums_to_zero(batch):
    labels = batch.labels.clone()
    labels[3] = IGNORE
    silent = replace(batch, labels=labels)
    values = torch.ones(len(supervised(silent)))
    assert sequence_sums(values, silent)[3] == 0
    assert sequence_sums(values, silent).sum() == len(supervised(silent))


def test_gradients_pass_through_sums(model, batch):
    sums = sequence_sums(answer_log_probs(model, batch), batch)
    sums[0].backward()
    alone = model.lm_head.weight.grad.clone()
    model.zero_grad()
    single = replace(batch, labels=torch.where(torch.arange(8)[:, None] == 0, batch.labels, IGNORE))
    answer_log_probs(model, single).sum().backward()
    torch.testing.assert_close(model.lm_head.weight.grad, alone, rtol=1e-4, atol=1e-7)


def test_statistics_against_formulas_written_out(model, batch):
    found = answer_statistics(model, batch)
    for number, (row, token) in enumerate(zip(brute_force_rows(model, batch), answer_tokens(batch), strict=True)):
        probs = [math.exp(value) for value in row.tolist()]
        mean = sum(p * value for p, value in zip(probs, row.tolist(), strict=True))
        variance = sum(p * (value - mean) ** 2 for p, value in zip(probs, row.tolist(), strict=True))  # the centred form
        assert found.log_probs[number].item() == pytest.approx(float(row[token]), abs=1e-5)
        assert found.means[number].item() == pytest.approx(mean, abs=1e-5)
        assert found.deviations[number].item() == pytest.approx(math.sqrt(variance), abs=1e-4)
        assert bool(found.hits[number]) == (max(probs) == probs[token])


def test_a_certain_model_has_deviation_zero_and_hits(model, batch):
    """One token with probability one: the moments are 0, not NaN by rounding below zero."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.language_model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.full((model.lm_head.weight.shape[0],), -200.0))
        model.lm_head.bias[7] = 200.0
    found = answer_statistics(model, batch)
    assert found.means.abs().max() == 0
    assert found.deviations.abs().max() == 0
    assert torch.equal(found.hits, answer_tokens(batch) == 7)


def test_a_model_that_knows_nothing_has_deviation_zero(model, batch):
    """All log-probabilities equal -log V. E[x^2] - E[x]^2 would leave a rounding error of some 1e-3 here, or NaN."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = answer_statistics(model, batch)
    assert found.means.tolist() == pytest.approx([-math.log(model.lm_head.weight.shape[0])] * len(found.means), abs=1e-5)
    assert found.deviations.max() < 1e-5


@pytest.mark.parametrize("composition", [[0], [0, 1], [0, 6, 7], [7, 0, 3, 5, 1]], ids=str)
def test_neighbours_and_padding_change_nothing(composition, model, processor, examples):
    encoder = encoder_for(processor)
    encoded = [encoder(example) for example in examples]

    def scores(numbers, left=False):
        batch = collate([encoded[number] for number in numbers], pad_token_id=encoder.pad_token_id, left=left)
        with torch.no_grad():
            return dict(zip(numbers, answer_log_probs(model, batch).split(sequence_counts(batch).tolist()), strict=True))

    alone = {number: scores([number])[number] for number in composition}
    for number, found in scores(composition).items():
        torch.testing.assert_close(found, alone[number], rtol=1e-6, atol=2e-6)


def test_padding_content_changes_nothing(model, processor, examples):
    """What stands in the padded positions is hidden by the attention mask."""
    batch = batch_of(processor, *examples)
    filled = torch.where(batch.inputs["attention_mask"] == 0, 5, batch.inputs["input_ids"])
    assert not torch.equal(filled, batch.inputs["input_ids"])
    with torch.no_grad():
        found = answer_log_probs(model, replace(batch, inputs={**batch.inputs, "input_ids": filled}))
        assert torch.equal(found, answer_log_probs(model, batch))
