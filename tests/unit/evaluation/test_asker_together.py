"""An asker that reads requests together says what one that reads them one by one says."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_mllmu import open_small, write_small
from tiny_cases import encoder_for, make_examples, tiny_model

from mmunlearn.benchmarks.base import Ask, Asking, Task
from mmunlearn.config_enums import Protocol, Shots
from mmunlearn.data.batch import IGNORE, Encoder
from mmunlearn.data.example import Example
from mmunlearn.errors import DataError
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.ties import NEAR_TIE
from mmunlearn.evaluation.together import Requests
from mmunlearn.metrics.catalog import CHOICE_METRICS, GENERATION_METRICS

CPU = torch.device("cpu")
MADE = make_examples("asked", 9)
EXAMPLES = tuple(replace(e, image=MADE[0].image) if n in (2, 4) else e for n, e in enumerate(MADE))
SETTINGS = {"examples": EXAMPLES, "higher_is_better": False}
GENERATE = Task(name="forget_image_generation", ask=Ask.generate, metrics=GENERATION_METRICS, max_new_tokens=9, **SETTINGS)
COMPARE = replace(
    GENERATE,
    examples=tuple(replace(e, perturbed=("Nobody knows", f"{e.answer} again"), paraphrase="In other words") for e in EXAMPLES),
)
CHOOSE = Task(
    name="forget_image_choice",
    ask=Ask.choose,
    metrics=CHOICE_METRICS,
    **SETTINGS
    | {
        "examples": tuple(
            replace(e, choices=("Ask me later", e.answer, f"{e.answer} too", "No")[: 2 + n % 3]) for n, e in enumerate(EXAMPLES)
        )
    },
)
TASKS = {"generate": GENERATE, "compare": COMPARE, "choose": CHOOSE}
WAYS = tuple(
    Asking(protocol=rules, shots=shots)
    for rules in (Protocol.fixed, Protocol.official)
    for shots in (Shots.zero_shot, Shots.few_shot)
)
EXACT = {"id", "prompt", "answer_hits", "option_tokens", "settings", "key"}


def answers(model, encoder, task, *, batch_size, shares_prefix):
    asker = Asker(model=model, encoder=encoder, batch_size=batch_size, device=CPU, shares_prefix=shares_prefix)
    ordered = asker.ordered(task.examples, task)
    assert sorted(e.id for e in ordered) == sorted(e.id for e in task.examples)
    return {prediction.id: prediction.to_json() for prediction in asker.predictions(ordered, task)}


def assert_alike(found, expected):
    """Texts equal but for near-ties; sums of log-probabilities within 2e-5, all other numbers within 1e-5."""
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        other = found[name]
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key in EXACT:
                assert other[key] == value, f"{name}: {key}"
            elif key == "text":
                assert other[key] == value or min(one["smallest_gap"], other["smallest_gap"]) < NEAR_TIE["float32"]
            elif key == "smallest_gap":
                assert other[key] == pytest.approx(value, abs=1e-4)
            else:
                assert list(other[key]) == pytest.approx(list(value), abs=2e-5), f"{name}: {key}"


@pytest.fixture
def encoder(processor):
    return encoder_for(processor, cache_bytes=0)


@pytest.mark.parametrize("batch_size", [1, 5, *(pytest.param(size, marks=pytest.mark.thorough) for size in (2, 64))])
@pytest.mark.parametrize("name", TASKS)
def test_the_same_answers(name, batch_size, model, encoder):
    model.eval()
    expected = answers(model, encoder, TASKS[name], batch_size=4, shares_prefix=False)
    assert_alike(answers(model, encoder, TASKS[name], batch_size=batch_size, shares_prefix=True), expected)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("asking", WAYS, ids=lambda way: f"{way.protocol}-{way.shots}")
def test_the_same_answers_by_all_rules_with_and_without_shots(asking, root):
    model, processor = tiny_model()
    model.eval().config.text_config.max_position_embeddings = 2000
    encoder = Encoder(processor, max_length=2000, cache_bytes=0)
    for task in open_small(root).tasks(("forget",), asking):
        short = replace(task, examples=task.examples[:2], max_new_tokens=4)
        expected = answers(model, encoder, short, batch_size=3, shares_prefix=False)
        assert_alike(answers(model, encoder, short, batch_size=3, shares_prefix=True), expected)


class Watching(torch.nn.Module):
    """A model that notes what it is given."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.generation_config = model, model.config, model.generation_config
        self.tokens = self.pictures = self.generated = 0

    def generate(self, **inputs):
        self.generated += 1
        return self.model.generate(**inputs)

    def forward(self, **inputs):
        self.tokens += inputs["input_ids"].numel()
        self.pictures += len(inputs.get("pixel_values", ()))
        return self.model(**inputs)


def test_a_picture_is_read_once_for_options_letters_and_reply(model, encoder):
    task = replace(CHOOSE, examples=CHOOSE.examples[1:3])
    pictures = {e.image.key for e in task.examples if e.image is not None}
    model.eval()
    tokens = {}
    for shares_prefix in (True, False):
        watching = Watching(model)
        answers(watching, encoder, task, batch_size=64, shares_prefix=shares_prefix)
        tokens[shares_prefix] = watching.tokens
        if shares_prefix:
            assert (watching.pictures, watching.generated) == (len(pictures), 0)
    assert tokens[True] < tokens[False] / 2


def test_answers_are_kept_and_asked_for_once(model, encoder):
    watching = Watching(model.eval())
    asker = Asker(model=watching, encoder=encoder, batch_size=8, device=CPU, shares_prefix=True)
    first = list(asker.predictions(EXAMPLES, GENERATE))
    read = watching.tokens
    assert list(asker.predictions(EXAMPLES, GENERATE)) == first
    assert [reply.text for reply in asker.generate(EXAMPLES, GENERATE.max_new_tokens)] == [each.text for each in first]
    assert watching.tokens == read > 0
    asker.generate(EXAMPLES, GENERATE.max_new_tokens + 1)
    assert watching.tokens > read


def test_another_picture_is_another_answer(model, encoder):
    model.eval()
    task = replace(CHOOSE, examples=CHOOSE.examples[:3])
    other = replace(task, examples=tuple(replace(e, image=MADE[6].image) if e.image else e for e in task.examples))
    before, after = (answers(model, encoder, each, batch_size=64, shares_prefix=True) for each in (task, other))
    for example in task.examples:
        key = "option_log_likelihoods"
        assert (before[example.id][key] == pytest.approx(after[example.id][key], abs=1e-4)) == (example.image is None)


def test_a_model_that_does_not_write_plainly_is_left_to_transformers(model, encoder):
    model.eval().generation_config.repetition_penalty = 3.0
    watching = Watching(model)
    found = answers(watching, encoder, GENERATE, batch_size=64, shares_prefix=True)
    assert watching.generated == 1
    expected = answers(model, encoder, GENERATE, batch_size=64, shares_prefix=False)
    assert_alike(found, expected)
    plain = copy.deepcopy(model)
    plain.generation_config.repetition_penalty = 1.0
    others = answers(plain, encoder, GENERATE, batch_size=64, shares_prefix=True)
    assert any(found[name]["text"] != others[name]["text"] for name in found), "the setting matters here"


def test_examples_about_one_picture_follow_each_other(model, encoder):
    asker = Asker(model=model, encoder=encoder, batch_size=8, device=CPU, shares_prefix=True)
    for task in TASKS.values():
        shown = [e.image.key if e.image else "" for e in asker.ordered(task.examples, task)]
        assert sum(one != other for one, other in pairwise(shown)) == len(set(shown)) - 1


def test_a_destroyed_model_answers(model, encoder):
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    for task in (GENERATE, CHOOSE):
        found = answers(model.eval(), encoder, task, batch_size=64, shares_prefix=True)
        assert {each["smallest_gap"] for each in found.values()} == {None}


def test_letters_that_begin_alike_are_refused(model, encoder, monkeypatch):
    monkeypatch.setattr(encoder, "first_tokens", lambda letters, asked: [7] * len(letters))
    with pytest.raises(DataError, match="cannot be told apart"):
        answers(model, encoder, CHOOSE, batch_size=8, shares_prefix=True)


@pytest.mark.parametrize("shares_prefix", [True, False])
@pytest.mark.parametrize("space", ["", " "], ids=["behind a template without a space", "behind one with a space"])
def test_letters_are_looked_for_as_the_tokens_that_the_whole_text_has(model, processor, shares_prefix, space):
    """By the chat template and in a given text at once; "A" and " A" are different tokens."""
    processor = copy.deepcopy(processor)
    processor.chat_template = processor.chat_template.replace(" {{ part['text'] }}", space + "{{ part['text'] }}")
    encoder = encoder_for(processor, max_length=512)
    listed = Example(id="l", question="Which?\nA: x\nB: y", answer="A", choices=("x", "y"))
    given = replace(listed, id="g", question="USER: Which?\nA: x\nB: y\nASSISTANT: ", verbatim=True)
    wholes = {"l": encoder.text(listed) + space, "g": given.question}
    tokenizer = processor.tokenizer
    asker = Asker(model=model.eval(), encoder=encoder, batch_size=8, device=CPU, shares_prefix=shares_prefix)
    wanted = []
    for order in (listed, given):
        before = tokenizer(wholes[order.id].rstrip())["input_ids"]
        texts = [tokenizer(wholes[order.id] + letter)["input_ids"] for letter in "AB"]
        assert all(ids[: len(before)] == before for ids in texts)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([before])).logits[0, -1].double()
        wanted.append(logits[[ids[len(before)] for ids in texts]].softmax(dim=-1))
        (tokens,) = asker._letter_tokens([order])
        assert tokens == [ids[len(before)] for ids in texts]
    if shares_prefix:
        asker._read_together(Requests(lettered=[listed, given]))
    found = asker._letter_probabilities([listed, given])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    different = {tuple(asker._letter_tokens([order])[0]) for order in (listed, given)}
    assert len(different) == (1 if space else 2)


def test_letters_follow_a_given_text_as_answers_do(encoder):
    """A space at its end is no token of its own: it belongs to the answer."""
    order = replace(MADE[1], question="USER: Which?\nA: x\nB: y\nASSISTANT: ", answer="A", choices=("x", "y"), verbatim=True)
    (row,) = Requests(lettered=[order]).rows(encoder)
    whole = encoder(order)
    first = int((whole.labels != IGNORE).nonzero()[0])
    assert row.ids.tolist() == whole.inputs["input_ids"][0, :first].tolist()
    assert row.wanted.tolist() == [first - 1]
