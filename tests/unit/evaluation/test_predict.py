import copy
import json
import math
import random
from dataclasses import replace

import pytest
import torch
from tiny_cases import Setup, encoder_for, make_examples, picture, training_of

from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.data.example import Example, Prediction
from mmunlearn.data.rendering import render_prompt
from mmunlearn.evaluation.asker import Asker, SmallestGaps, average_over_orders
from mmunlearn.evaluation.predict import GROUP_BATCHES, Asked, predict_all
from mmunlearn.evaluation.requests import LETTER_TOKENS, letter_examples, option_examples, question_to_generate
from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.finetune import FineTune
from mmunlearn.metrics.catalog import CHOICE_METRICS, GENERATION_METRICS
from mmunlearn.run import Run, read_json_lines
from mmunlearn.training.optimizer import build_optimizer

GENERATE = Task(
    name="forget_image_generation",
    examples=make_examples("asked", 11),
    ask=Ask.generate,
    metrics=GENERATION_METRICS,
    higher_is_better=False,
    max_new_tokens=24,
)
CHOICES = ("Paris", "A town by the sea", "No", "Red hair")
CHOOSE = Task(
    name="forget_image_choice",
    examples=tuple(
        replace(example, question="Who is it?", choices=CHOICES[: 2 + number % 3], answer=CHOICES[number % 2])
        for number, example in enumerate(make_examples("chosen", 5))
    ),
    ask=Ask.choose,
    metrics=CHOICE_METRICS,
    higher_is_better=False,
    instruction="Just give ONE letter.",
)
IMAGE = "<image>\n"
EXACT = {"id", "prompt", "text", "answer_hits", "option_tokens", "settings", "key"}


@pytest.fixture(scope="module")
def trained(pristine, tmp_path_factory):
    """A model that has learned some answers, so that replies end at different lengths and differ from one another."""
    setup = Setup(
        FineTune(),
        TrainingData(retain=GENERATE.examples[:8]),
        *copy.deepcopy(pristine),
        tmp_path_factory.mktemp("trained"),
        optimizer=build_optimizer,
        args={"max_steps": 60, "learning_rate": 5e-3, "max_grad_norm": 1.0, "logging_steps": 60},
    )
    training = training_of(setup)
    training.run()
    losses = [line["terms"]["finetune"]["raw"] for line in read_json_lines(training.log.path)]
    assert losses[-1] < 0.2 < losses[0]
    return training.model


@pytest.fixture
def ask(trained, processor):
    """An asker with the given batch size."""

    def make(batch_size=4, model=trained):
        return Asker(
            model=model, encoder=encoder_for(processor, cache_bytes=0), batch_size=batch_size, device=torch.device("cpu")
        )

    return make


def records(predictions):
    return {prediction.id: prediction.to_json() for prediction in predictions}


def assert_alike(found, expected):
    """Texts and counts equal, numbers within 1e-5."""
    assert found.keys() == expected.keys()
    for name, left in found.items():
        right = expected[name]
        assert left.keys() == right.keys()
        for key, value in left.items():
            if key == "smallest_gap":
                assert value == pytest.approx(right[key], abs=1e-4), f"{name}: {key}"
            elif key in EXACT:
                assert value == right[key], f"{name}: {key}"
            else:
                assert list(value) == pytest.approx(list(right[key]), abs=1e-5), f"{name}: {key}"


def prompt_and_answer(processor, question, answer, image):
    """Token ids and pixels with plain processor calls, and where the answer starts."""
    images = [image.open()] if image is not None else None
    prompt = f"USER: {IMAGE if image is not None else ''}{question}\nASSISTANT:"
    start = processor(text=prompt, images=images, return_tensors="pt")["input_ids"].shape[1]
    return dict(processor(text=f"{prompt} {answer}</s>", images=images, return_tensors="pt")), start


def log_likelihood(model, processor, question, answer, image):
    """log p of each answer token, one sequence at a time, from full logits."""
    inputs, start = prompt_and_answer(processor, question, answer, image)
    with torch.no_grad():
        rows = model(**inputs).logits[0].double().log_softmax(-1)
    ids = inputs["input_ids"][0]
    return [float(rows[t - 1, ids[t]]) for t in range(start, len(ids))]


def greedy(model, processor, question, image, limit):
    """One token at a time, without cache, one sequence at a time."""
    images = [image.open()] if image is not None else None
    prompt = f"USER: {IMAGE if image is not None else ''}{question}\nASSISTANT:"
    inputs = dict(processor(text=prompt, images=images, return_tensors="pt"))
    start = inputs["input_ids"].shape[1]
    while inputs["input_ids"].shape[1] < start + limit:
        with torch.no_grad():
            token = model(**inputs).logits[0, -1].argmax()
        if token == processor.tokenizer.eos_token_id:
            break
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token.view(1, 1)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return processor.tokenizer.decode(inputs["input_ids"][0, start:]).strip()


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_requests():
    example = Example(id="x", question="Who?", answer="b", choices=("a", "b", "c"))
    assert question_to_generate(example, CHOOSE).question == "Who?\nA: a\nB: b\nC: c\nJust give ONE letter."
    assert question_to_generate(example, replace(GENERATE, instruction="Say.")).question == "Who?\nSay."
    assert question_to_generate(example, GENERATE).question == "Who?"
    assert [option.answer for option in option_examples(example, CHOOSE)] == ["a", "b", "c"]
    assert {option.question for option in option_examples(example, CHOOSE)} == {"Who?"}
    assert [order.question.split("\n")[1:4] for order in letter_examples(example, CHOOSE)] == [
        ["A: a", "B: b", "C: c"],
        ["A: b", "B: c", "C: a"],
        ["A: c", "B: a", "C: b"],
    ]


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [GENERATE, CHOOSE], ids=lambda task: task.ask)
def test_the_batch_size_changes_nothing(task, ask):
    one = records(ask(1).predictions(task.examples, task))
    many = records(ask(5).predictions(task.examples, task))
    assert list(one) == list(many) == [example.id for example in task.examples]
    assert_alike(many, one)


def test_replies_are_those_of_greedy_decoding_one_by_one(ask, trained, processor):
    expected = [greedy(trained, processor, example.question, example.image, 24) for example in GENERATE.examples]
    found = [reply.text for reply in ask(5).generate(GENERATE.examples, 24)]
    assert found == expected
    assert len({len(processor.tokenizer(text)["input_ids"]) for text in found}) > 2, "replies of different lengths"
    assert sum(text == example.answer for text, example in zip(found, GENERATE.examples, strict=True)) >= 6


def test_the_limit_of_new_tokens_holds(ask, processor):
    ((short, _),) = ask().generate(GENERATE.examples[6:7], 2)
    ((long, _),) = ask().generate(GENERATE.examples[6:7], 24)
    assert long.startswith(short)
    assert len(processor.tokenizer(f" {short}")["input_ids"]) <= 2


def test_the_picture_decides(ask):
    shown = GENERATE.examples[0]
    other = replace(shown, image=picture(77))
    first, second = ask().statistics([shown, other])
    assert (first.log_probs - second.log_probs).abs().max() > 1e-3


# --- likelihoods -----------------------------------------------------------------------------------------------------


def test_answer_statistics_one_by_one(ask, trained, processor):
    for prediction, example in zip(ask(5).predictions(GENERATE.examples, GENERATE), GENERATE.examples, strict=True):
        expected = log_likelihood(trained, processor, example.question, example.answer, example.image)
        assert prediction.answer_log_probs == pytest.approx(expected, abs=1e-5)
        lengths = {len(getattr(prediction, name)) for name in ("answer_hits", "vocabulary_means", "vocabulary_deviations")}
        assert lengths == {len(expected)}
        assert prediction.prompt == render_prompt(processor, example.question, has_image=example.image is not None)


def test_option_likelihoods_one_by_one(ask, trained, processor):
    for prediction, example in zip(ask(3).predictions(CHOOSE.examples, CHOOSE), CHOOSE.examples, strict=True):
        expected = [log_likelihood(trained, processor, example.question, option, example.image) for option in example.choices]
        assert prediction.option_log_likelihoods == pytest.approx([sum(values) for values in expected], abs=1e-4)
        assert prediction.option_tokens == tuple(map(len, expected))
        right = expected[example.choices.index(example.answer)]
        assert prediction.answer_log_probs == pytest.approx(right, abs=1e-5)


def test_letter_probabilities_one_by_one(ask, trained, processor):
    letters = [processor.tokenizer.convert_tokens_to_ids(f"Ġ{letter}") for letter in "ABCD"]
    for prediction, example in zip(ask(3).predictions(CHOOSE.examples, CHOOSE), CHOOSE.examples, strict=True):
        count = len(example.choices)
        totals = dict.fromkeys(example.choices, 0.0)
        for shift in range(count):
            order = [example.choices[(position + shift) % count] for position in range(count)]
            listed = "".join(f"\n{letter}: {option}" for letter, option in zip("ABCD", order, strict=False))
            inputs, start = prompt_and_answer(
                processor, f"{example.question}{listed}\nJust give ONE letter.", "A", example.image
            )
            with torch.no_grad():
                scores = trained(**inputs).logits[0, start - 1].double()[letters[:count]]
            for option, probability in zip(order, scores.softmax(-1).tolist(), strict=True):
                totals[option] += probability / count
        assert prediction.option_letter_probabilities == pytest.approx(list(totals.values()), abs=1e-5)
        assert sum(prediction.option_letter_probabilities) == pytest.approx(1)
        prompt = render_prompt(processor, f"{example.question}\nA: Paris", has_image=example.image is not None)
        assert prediction.prompt.startswith(prompt.removesuffix("\nASSISTANT:"))


def test_a_letter_reply_is_short(ask, processor):
    for prediction in ask().predictions(CHOOSE.examples, CHOOSE):
        assert len(processor.tokenizer(prediction.text)["input_ids"]) <= LETTER_TOKENS + 1


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_always_choosing_a_letter_is_knowing_nothing(count):
    for letter in range(count):
        row = torch.zeros(count, dtype=torch.float64)
        row[letter] = 1
        assert average_over_orders([row] * count) == pytest.approx([1 / count] * count)


def test_knowing_the_answer_shows_whatever_its_letter():
    """Option 2 gets 0.7 wherever it is listed: in order `shift` it stands at (2 - shift) mod 4."""
    rows = []
    for shift in range(4):
        row = torch.full((4,), 0.1)
        row[(2 - shift) % 4] = 0.7
        rows.append(row)
    assert average_over_orders(rows) == pytest.approx([0.1, 0.1, 0.7, 0.1])


def test_orders_are_aligned_as_on_paper():
    """Orders abc, bca, cab; option a is read off at A, C, B; b at B, A, C; c at C, B, A."""
    rows = [torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.1, 0.3]), torch.tensor([0.2, 0.4, 0.4])]
    a, b, c = (0.5 + 0.3 + 0.4) / 3, (0.3 + 0.6 + 0.4) / 3, (0.2 + 0.1 + 0.2) / 3
    assert average_over_orders(rows) == pytest.approx([a, b, c])


# --- files -----------------------------------------------------------------------------------------------------------


def predict(asker, task, root, model="model-1", **settings):
    run = Run(root)
    done = predict_all(asker, [Asked(task=task, run=run, model=model, settings={"protocol": "fixed", **settings})])
    return done, {record["id"]: record for record in read_json_lines(run.predictions(task.name))}


@pytest.mark.parametrize("task", [GENERATE, CHOOSE], ids=lambda task: task.ask)
def test_every_question_gets_one_line(task, ask, tmp_path):
    done, lines = predict(ask(2), task, tmp_path)
    assert done == 0
    assert lines.keys() == {example.id for example in task.examples}
    assert len(read_json_lines(Run(tmp_path).predictions(task.name))) == len(task.examples)
    assert len({record["key"] for record in lines.values()}) == len(task.examples)
    assert {record["settings"]["protocol"] for record in lines.values()} == {"fixed"}


@pytest.mark.parametrize("kept_bytes", [0.0, 0.33, 0.7, 0.999])
def test_a_killed_evaluation_ends_like_an_undisturbed_one(kept_bytes, ask, tmp_path):
    _, expected = predict(ask(1), GENERATE, tmp_path / "undisturbed")
    whole = Run(tmp_path / "undisturbed").predictions(GENERATE.name).read_bytes()
    killed = Run(tmp_path / "killed").predictions(GENERATE.name)
    killed.parent.mkdir(parents=True)
    killed.write_bytes(whole[: int(kept_bytes * len(whole))])
    complete = killed.read_bytes().count(b"\n")
    done, found = predict(ask(2), GENERATE, tmp_path / "killed")
    assert done == complete
    assert_alike(found, expected)
    assert killed.read_bytes().count(b"\n") == len(GENERATE.examples)


def test_what_is_answered_is_not_asked_again(ask, tmp_path):
    _, before = predict(ask(), GENERATE, tmp_path)

    class Unasked:
        batch_size = 4

        def predictions(self, examples, task):
            raise AssertionError("nothing is open")

    done, after = predict(Unasked(), GENERATE, tmp_path)
    assert done == len(GENERATE.examples)
    assert before == after


@pytest.mark.parametrize(
    "change",
    [
        {"model": "model-2"},
        {"task": replace(GENERATE, version="2")},
        {"task": replace(GENERATE, instruction="Briefly.")},
        {"task": replace(GENERATE, max_new_tokens=3)},
        {"dtype": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_answers_to_something_else_are_dropped(change, ask, tmp_path):
    _, before = predict(ask(), GENERATE, tmp_path)
    done, after = predict(ask(), change.pop("task", GENERATE), tmp_path, **change)
    assert done == 0
    assert after.keys() == before.keys()
    assert not {record["key"] for record in before.values()} & {record["key"] for record in after.values()}


@pytest.mark.parametrize(
    "change",
    [{"question": "Why?"}, {"answer": "Else"}, {"image": picture(99)}, {"image": None}],
    ids=lambda change: next(iter(change)),
)
def test_an_example_that_changed_is_asked_again(change, ask, tmp_path):
    predict(ask(), GENERATE, tmp_path)
    first, *others = GENERATE.examples
    done, _ = predict(ask(), replace(GENERATE, examples=(replace(first, **change), *others)), tmp_path)
    assert done == len(others)


def test_answers_are_written_as_they_come(ask, tmp_path):
    """A kill loses at most one group of batches."""
    asker = ask(1)
    seen = []

    class Watching:
        batch_size = 1

        def ordered(self, examples, task):
            return examples

        def predictions(self, examples, task):
            seen.append(len(read_json_lines(Run(tmp_path).predictions(task.name))))
            yield from asker.predictions(examples, task)

    predict(Watching(), GENERATE, tmp_path)
    assert seen == list(range(0, len(GENERATE.examples), GROUP_BATCHES))


def test_a_destroyed_model_can_still_be_evaluated(ask, model, tmp_path):
    """Unlearning with too high a rate ends in NaN; the evaluation must say so and not crash."""
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    for task in (GENERATE, CHOOSE):
        _, lines = predict(ask(model=model), task, tmp_path)
        assert len(lines) == len(task.examples)
        for line in Run(tmp_path).predictions(task.name).read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)


# --- answers that a free answer is compared with ----------------------------------------------------------------------


def test_wrong_answers_and_the_paraphrase_one_by_one(ask, trained, processor):
    wrong = ("In Rome", "She was a judge by trade", "Green hair and a hat")
    examples = tuple(
        replace(example, perturbed=wrong[: number % 4], paraphrase="In other words" if number % 2 else "")
        for number, example in enumerate(GENERATE.examples)
    )
    task = replace(GENERATE, examples=examples, instruction="Answer briefly.")
    for prediction, example in zip(ask(3).predictions(examples, task), examples, strict=True):
        others = [*example.perturbed, *([example.paraphrase] if example.paraphrase else [])]
        question = f"{example.question}\nAnswer briefly."
        expected = [log_likelihood(trained, processor, question, other, example.image) for other in others]
        assert prediction.option_log_likelihoods == pytest.approx([sum(values) for values in expected], abs=1e-4)
        assert prediction.option_tokens == tuple(map(len, expected))
        right = log_likelihood(trained, processor, question, example.answer, example.image)
        assert prediction.answer_log_probs == pytest.approx(right, abs=1e-5)
        assert prediction.option_letter_probabilities == ()


# --- near-ties --------------------------------------------------------------------------------------------------------


def smallest_gap(model, processor, question, image, limit):
    """One token at a time, one sequence at a time: the smallest gap up to and including the end token."""
    images = [image.open()] if image is not None else None
    prompt = f"USER: {IMAGE if image is not None else ''}{question}\nASSISTANT:"
    inputs = dict(processor(text=prompt, images=images, return_tensors="pt"))
    found = math.inf
    for _ in range(limit):
        with torch.no_grad():
            first, second = model(**inputs).logits[0, -1].topk(2)
        found = min(found, float(first[0] - first[1]))
        token = second[0]
        if token == processor.tokenizer.eos_token_id:
            break
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token.view(1, 1)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return found


@pytest.mark.parametrize("limit", [1, 24])
def test_the_smallest_gap_is_that_of_the_reply_alone(limit, ask, trained, processor):
    """Rows of a batch that have ended, and the padding before them, have no say."""
    expected = [smallest_gap(trained, processor, e.question, e.image, limit) for e in GENERATE.examples]
    found = [reply.smallest_gap for reply in ask(11).generate(GENERATE.examples, limit)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(gap, 3) for gap in found}) > 5


def test_a_tie_is_seen(ask, model):
    """Two rows of the head made equal: wherever one of the tokens is the best, so is the other."""
    with torch.no_grad():
        model.lm_head.weight[7] = model.lm_head.weight[8] = model.lm_head.weight.mean(dim=0) + 3
        if getattr(model.lm_head, "bias", None) is not None:
            model.lm_head.bias.zero_()
    gaps = [reply.smallest_gap for reply in ask(4, model.eval()).generate(GENERATE.examples, 24)]
    assert min(gaps) < 1e-4


def test_looking_at_the_gaps_changes_no_reply(ask, trained, processor):
    (reply,) = ask().generate(GENERATE.examples[:1], 24)
    encoded = ask().encoder.prompt(GENERATE.examples[0]).inputs
    ids = trained.generate(**encoded, max_new_tokens=24, do_sample=False, eos_token_id=processor.tokenizer.eos_token_id)
    plain = processor.tokenizer.decode(ids[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    assert reply.text == plain.strip()


def test_gaps_by_hand():
    """Two rows: the first ends after its second token, and what is padded behind it counts for nothing."""
    gaps = SmallestGaps(end_token_id=2)
    steps = [
        ([[5, 2], [5, 5]], [[1.0, 4.0, 2.0], [0.0, 9.0, 8.5]]),  # the prompt may end with an end token
        ([[5, 2, 1], [5, 5, 1]], [[3.5, 0.0, 2.0], [0.0, 1.0, 9.0]]),
        ([[5, 2, 1, 2], [5, 5, 1, 0]], [[1.0, 1.0, 1.0], [7.0, 6.75, 0.0]]),
    ]
    for ids, scores in steps:
        given = torch.tensor(scores)
        assert torch.equal(gaps(torch.tensor(ids), given), torch.tensor(scores))
    assert gaps.found(2) == [1.5, 0.25]
    assert SmallestGaps(2).found(3) == [None] * 3
    lost = SmallestGaps(2)
    lost(torch.tensor([[1]]), torch.tensor([[math.nan, 1.0]]))
    assert lost.found(1) == [None]


def test_predictions_of_earlier_versions_have_no_gap():
    record = Prediction(id="x", prompt="?", text="!").to_json()
    del record["smallest_gap"]
    assert Prediction.from_json(record).smallest_gap is None
    kept = Prediction(id="x", prompt="?", text="!", smallest_gap=0.25)
    assert Prediction.from_json(json.loads(json.dumps(kept.to_json()))) == kept


# --- order ------------------------------------------------------------------------------------------------------------


def padding(lengths, batch_size):
    """Share of positions that are padding."""
    rows = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(row) * len(row) for row in rows)


def test_alike_lengths_are_asked_together(ask):
    """Length in characters is another order than length in tokens, which is what is padded."""
    asker = ask(3)
    dice = random.Random(3)
    many = tuple(
        replace(
            GENERATE.examples[number % 2],
            id=f"{number}",
            question="Where does this person live? " * dice.randrange(3) + "zq" * dice.randrange(1, 12),
            answer="No",
        )
        for number in range(18)
    )
    task = replace(GENERATE, examples=many)
    ordered = asker.ordered(many, task)
    assert sorted(example.id for example in ordered) == sorted(example.id for example in many)
    tokens = [asker.encoder.prompt(example).labels.shape[0] for example in ordered]
    pictures = [example.image is not None for example in ordered]
    assert pictures == sorted(pictures), "text first"
    for shown in (False, True):
        own = [length for length, picture in zip(tokens, pictures, strict=True) if picture is shown]
        assert own == sorted(own)
    by_characters = sorted(many, key=lambda example: (example.image is not None, len(example.question)))
    assert padding(tokens, 3) < padding([asker.encoder.prompt(e).labels.shape[0] for e in by_characters], 3)


def test_free_replies_are_asked_in_the_order_of_their_expected_length(ask):
    asker = ask()
    plain = [replace(example, question="Who?", image=None) for example in GENERATE.examples]
    found = asker.ordered(plain, GENERATE)
    lengths = [len(asker.encoder.processor.tokenizer(example.answer)["input_ids"]) for example in found]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3


def test_batches_are_made_by_length_whatever_the_order(ask, monkeypatch):
    """Within a group, rows of a batch are neighbours in length; answers come back in the order asked."""
    seen = []
    asker = ask(2)
    whole = Asker._batches

    def watching(self, encoded, order, *, left=False):
        for places, batch in whole(self, encoded, order, left=left):
            seen.append([len(encoded[place].labels) for place in places])
            yield places, batch

    monkeypatch.setattr(Asker, "_batches", watching)
    statistics = asker.statistics(GENERATE.examples)
    flat = [length for lengths in seen for length in lengths]
    assert flat == sorted(flat)
    assert len(set(flat)) > 3
    assert [len(each.log_probs) for each in statistics] == [
        int((asker.encoder(example).labels != -100).sum()) for example in GENERATE.examples
    ]
