"""What ranks lack is filled in without any effect: blank pictures and stand-ins, for every family of models."""

import pytest
import torch
from accelerate import Accelerator
from tiny_cases import encoder_for, make_examples, tiny_family

from mmunlearn.data.batch import IGNORE, Pair, collate
from mmunlearn.data.processing import image_tokens
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Prepared, TrainingData
from mmunlearn.methods.losses import answer_nll
from mmunlearn.methods.npo import npo
from mmunlearn.models.families import FAMILIES
from mmunlearn.training.dummies import blank_picture, evening, stand_in

THROUGH_TOKENS = [name for name in FAMILIES if name != "mllama"]


def gradients(model, batch):
    model.zero_grad(set_to_none=True)
    loss = answer_nll(model, batch, Prepared())
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=THROUGH_TOKENS)
def family(request):
    model, processor = tiny_family(request.param)
    return model.eval(), encoder_for(processor)


def text_batch(encoder, count=3):
    encoded = [encoder(example) for example in make_examples("forget", count, images="none")]
    return collate(encoded, pad_token_id=encoder.pad_token_id)


def test_a_blank_picture_changes_neither_loss_nor_gradient(family):
    model, encoder = family
    batch = text_batch(encoder)
    pictured = blank_picture(encoder).behind(batch)
    loss, expected = gradients(model, batch)
    blank_loss, found = gradients(model, pictured)
    assert abs(float(blank_loss - loss)) <= 1e-6 * abs(float(loss))
    scale = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 1e-6 * scale, name
    seen = found.keys() - expected.keys()
    assert seen, "the picture went through the vision part, so that its layers are in the graph"
    assert all(found[name].count_nonzero() == 0 for name in seen)


def test_the_blank_picture_stands_behind_the_shortest_text_and_is_hidden(family):
    _, encoder = family
    batch = text_batch(encoder)
    pictured = blank_picture(encoder).behind(batch)
    ids, mask = pictured.inputs["input_ids"], pictured.inputs["attention_mask"]
    places = torch.isin(ids, torch.tensor(sorted(image_tokens(encoder.processor))))
    lengths = batch.inputs["attention_mask"].sum(dim=1)
    assert places.any(dim=1).tolist() == [row == int(lengths.argmin()) for row in range(3)]
    assert mask[places].count_nonzero() == 0
    assert mask.sum() == lengths.sum()
    assert (pictured.labels[places] == IGNORE).all()
    assert pictured.labels.shape == ids.shape
    assert pictured.num_tokens == batch.num_tokens


def test_a_cross_attention_model_is_refused_for_mixed_data_only():
    _, processor = tiny_family("mllama")
    encoder = encoder_for(processor)
    with pytest.raises(ConfigError, match="cross-attention"):
        evening(TrainingData(retain=make_examples("retain", 2)), encoder, Accelerator(cpu=True))
    for images in ("all", "none"):
        assert evening(TrainingData(retain=make_examples("retain", 2, images=images)), encoder, Accelerator(cpu=True))


@pytest.fixture(scope="module")
def llava():
    model, processor = tiny_family("llava")
    return model.eval(), encoder_for(processor)


def test_a_stand_in_has_no_share_of_the_step(llava):
    model, encoder = llava
    examples = make_examples("forget", 4, images="all")
    batch = stand_in(examples, encoder)
    assert not any(key.startswith("pixel") for key in batch.inputs)
    assert batch.num_tokens > 0
    loss, found = gradients(model, batch)
    assert float(loss) == 0
    assert all(value.count_nonzero() == 0 for value in found.values())
    stored = Prepared(log_likelihoods={example.id: -3.0 for example in examples})
    assert float(npo(model, batch, stored, beta=0.1)) == 0


class Ranks:
    """Stands for the connection: what another rank has is added to what this one says."""

    device = torch.device("cpu")

    def __init__(self, other):
        self.other = torch.tensor(other, dtype=torch.float64)

    def reduce(self, own, reduction):
        assert reduction == "sum"
        return own + self.other


ABSENT, TEXT, PICTURE = (0.0, 0.0), (1.0, 0.0), (1.0, 1.0)


@pytest.mark.parametrize("other", [ABSENT, TEXT, PICTURE], ids=["absent", "text", "picture"])
@pytest.mark.parametrize("own", ["absent", "text", "picture"])
def test_a_window_is_filled_where_another_rank_has_more(own, other, llava):
    _, encoder = llava
    data = TrainingData(forget=make_examples("forget", 4), retain=make_examples("retain", 4))
    texts = text_batch(encoder, 2)
    pictured = collate([encoder(example) for example in data.forget[:2]], pad_token_id=encoder.pad_token_id)
    mine = {"absent": None, "text": texts, "picture": pictured}[own]
    even = evening(data, encoder, Ranks([[other, ABSENT]]))
    (pair,) = even([Pair(forget=mine, retain=None)])
    assert pair.retain is None
    if own == "absent" and other == ABSENT:
        assert pair.forget is None
        return
    wants_picture = own == "picture" or other == PICTURE
    assert ("pixel_values" in pair.forget.inputs) == wants_picture
    if mine is not None:
        assert pair.forget.ids == mine.ids
        assert pair.forget.num_tokens == mine.num_tokens
        assert pair.forget.step_tokens == mine.step_tokens
        assert (pair.forget is mine) == (own == "picture" or other != PICTURE)
    else:
        assert pair.forget.step_tokens == pair.forget.step_sequences == float("inf")
