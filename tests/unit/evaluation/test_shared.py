"""The same request is computed once in a run, whichever task or way of asking it belongs to."""

from dataclasses import replace

import pytest
import torch
from small_mllmu import open_small, write_small
from tiny_cases import SIZE, encoder_for, make_examples, picture, tiny_model

from mmunlearn.benchmarks.base import Ask, Asking, Task
from mmunlearn.config_enums import Protocol, Shots
from mmunlearn.data.batch import Encoder
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.predict import Asked, predict_all
from mmunlearn.evaluation.shared import Shared
from mmunlearn.metrics.catalog import CHOICE_METRICS, GENERATION_METRICS
from mmunlearn.progress import progress
from mmunlearn.run import Run, read_json_lines

EXAMPLES = make_examples("asked", 6)
GENERATE = Task(
    name="forget_image_generation",
    examples=EXAMPLES,
    ask=Ask.generate,
    metrics=GENERATION_METRICS,
    higher_is_better=False,
    max_new_tokens=6,
)
CHOOSE = Task(
    name="forget_image_choice",
    examples=tuple(replace(e, choices=(e.answer, "No idea", "Ask me later")) for e in EXAMPLES),
    ask=Ask.choose,
    metrics=CHOICE_METRICS,
    higher_is_better=False,
)
PUBLISHED = tuple(Asking(protocol=Protocol.official, shots=shots) for shots in (Shots.zero_shot, Shots.few_shot))


class Counting(torch.nn.Module):
    """A model that counts what it is given: rows it is to continue, and rows whose likelihood it is asked for."""

    def __init__(self, model):
        super().__init__()
        self.model, self.generated, self.scored, self.calls = model, 0, 0, 0

    def generate(self, **inputs):
        self.calls += 1
        self.generated += len(inputs["input_ids"])
        return self.model.generate(**inputs)

    def forward(self, **inputs):
        self.calls += 1
        self.scored += len(inputs["input_ids"])
        return self.model(**inputs)


@pytest.fixture
def counted(model, processor):
    def make(batch_size=4):
        counting = Counting(model.eval())
        encoder = encoder_for(processor, cache_bytes=0)
        return counting, Asker(model=counting, encoder=encoder, batch_size=batch_size, device=torch.device("cpu"))

    return make


def records(asker, task):
    return {prediction.id: prediction.to_json() for prediction in asker.predictions(task.examples, task)}


def test_each_key_is_computed_once_and_everybody_gets_it():
    asked = []

    def compute(places):
        asked.append(places)
        return [f"answer {place}" for place in places]

    shared = Shared()
    assert shared.each(["a", "b", "a"], compute) == ["answer 0", "answer 1", "answer 0"]
    assert shared.each(["b", "c"], compute) == ["answer 1", "answer 1"]
    assert shared.each(["c", "a"], compute) == ["answer 1", "answer 0"]
    assert asked == [[0, 1], [1]]


def test_a_computation_that_gives_too_few_answers_is_no_silent_gap():
    with pytest.raises(ValueError, match="zip"):
        Shared().each(["a", "b"], lambda places: ["only one"])


def test_questions_asked_again_cost_nothing(counted):
    counting, asker = counted()
    first = records(asker, GENERATE)
    assert (counting.generated, counting.scored) == (6, 6)
    other = replace(GENERATE, name="test_image_generation", examples=tuple(replace(e, id=f"t-{e.id}") for e in EXAMPLES))
    second = records(asker, other)
    assert (counting.generated, counting.scored) == (6, 6)
    assert [record | {"id": ""} for record in first.values()] == [record | {"id": ""} for record in second.values()]


def test_the_right_answer_is_one_of_the_options_and_asked_once(counted):
    counting, asker = counted()
    records(asker, CHOOSE)
    assert (counting.generated, counting.scored) == (6, 6 * (3 + 3)), "three options and three orders of letters"
    records(asker, GENERATE)
    assert counting.scored == 36, "the options were asked without the list, as the free question is"
    assert counting.generated == 12


@pytest.mark.parametrize("task", [GENERATE, CHOOSE], ids=lambda task: task.ask)
def test_shared_answers_equal_those_computed_alone(task, counted):
    """In batches of one no other row can change a bit."""
    _, sharing = counted(1)
    records(sharing, CHOOSE)
    records(sharing, replace(GENERATE, examples=EXAMPLES[::-1]))
    assert records(sharing, task) == records(counted(1)[1], task)


@pytest.mark.parametrize(
    ("change", "generated", "scored"),
    [
        ({"question": "Another one?"}, 1, 1),
        ({"image": picture(99)}, 1, 1),
        ({"image": None}, 1, 1),
        ({"answer": "Something else"}, 0, 1),
        ({"subject": "somebody", "id": "x"}, 0, 0),
    ],
    ids=["question", "picture", "no picture", "answer", "subject"],
)
def test_what_decides_an_answer(change, generated, scored, counted):
    counting, asker = counted()
    task = replace(GENERATE, examples=EXAMPLES[:1])
    records(asker, task)
    counting.generated = counting.scored = 0
    records(asker, replace(task, examples=(replace(EXAMPLES[0], **change),)))
    assert (counting.generated, counting.scored) == (generated, scored)


def test_a_longer_reply_is_asked_for_anew(counted):
    counting, asker = counted()
    records(asker, GENERATE)
    records(asker, replace(GENERATE, max_new_tokens=7))
    assert (counting.generated, counting.scored) == (12, 6)


def test_published_free_answers_are_asked_once_for_both_ways(tmp_path):
    """The published rules show no solved questions before those to be answered freely: few-shot is the same request."""
    root = write_small(tmp_path / "data")
    model, processor = tiny_model()
    model.config.text_config.max_position_embeddings = 2000
    encoder = Encoder(processor, max_length=2000, cache_bytes=0)

    def answered(folder, ways):
        counting = Counting(model.eval())
        asker = Asker(model=counting, encoder=encoder, batch_size=1, device=torch.device("cpu"))
        everything = [
            Asked(
                task=replace(task, max_new_tokens=4),
                run=Run(folder / way.shots),
                model="m",
                settings={"protocol": "official"},
            )
            for way in ways
            for task in open_small(root).tasks(("forget",), way)
            if task.name.endswith("generation")
        ]
        assert predict_all(asker, everything) == 0
        return counting, {a.run.root.name: read_json_lines(a.run.predictions(a.task.name)) for a in everything}

    once, alone = answered(tmp_path / "one", PUBLISHED[:1])
    both, together = answered(tmp_path / "both", PUBLISHED)
    assert (both.generated, both.scored) == (once.generated, once.scored)
    assert together["zero_shot"] == alone["zero_shot"]
    plain = [{k: v for k, v in line.items() if k != "key"} for line in together["few_shot"]]
    assert plain == [{k: v for k, v in line.items() if k != "key"} for line in alone["zero_shot"]]


def test_what_is_kept_lies_in_the_memory_of_the_cpu_and_is_small(counted):
    _, asker = counted()
    records(asker, CHOOSE)
    (found,) = asker.statistics([CHOOSE.examples[0]])
    assert {values.device.type for values in found} == {"cpu"}
    assert all(values.numel() <= SIZE.max_length and not values.requires_grad for values in found)


def test_one_bar_counts_all_questions_and_knows_the_time_left(counted, tmp_path, monkeypatch):
    bars = []

    def watched(**settings):
        bars.append(progress(**settings))
        return bars[-1]

    _, asker = counted()
    everything = [Asked(task=task, run=Run(tmp_path), model="m", settings={}) for task in (GENERATE, CHOOSE)]
    first = replace(GENERATE, examples=EXAMPLES[:2])
    predict_all(asker, [Asked(task=first, run=Run(tmp_path), model="m", settings={})])
    monkeypatch.setattr("mmunlearn.evaluation.predict.progress", watched)
    assert predict_all(asker, everything) == 2
    (bar,) = bars
    assert (bar.total, bar.initial, bar.n) == (12, 2, 12)
    assert bar.smoothing == 0, "choices take longer than the questions before them: the mean over all tells best"
    bar.n, bar.start_t = 7, bar._time() - 10.0  # five of the ten open ones took ten seconds
    assert "7/12 [00:10<00:10" in str(bar)
