"""How CLEAR is asked: prompts word by word under both protocols, wrong answers beside right ones, how replies are counted."""

import math
import os
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clear_published import write
from rouge_score.rouge_scorer import RougeScorer
from tiny_cases import encoder_for, picture

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import AS_EVER, Ask, Asking
from mmunlearn.benchmarks.clear import CLEAR
from mmunlearn.benchmarks.clear_official import METRICS
from mmunlearn.config_enums import Choice, Protocol, Shots
from mmunlearn.data.example import Example, Prediction
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.predict import Asked, check_family, predict_all
from mmunlearn.evaluation.requests import (
    LETTER_TOKENS,
    compared_examples,
    letter_examples,
    option_examples,
    prediction_key,
    question_to_generate,
    reply_limit,
)
from mmunlearn.evaluation.score import questions_fingerprint, score_task
from mmunlearn.report.words import primary_metric
from mmunlearn.run import Run, read_json_lines, write_json

GOLDEN = Path(__file__).parents[2] / "golden"
END = "[end of prompt]\n"
WRITE = os.environ.get("MMUNLEARN_WRITE_GOLDEN") == "1"
"""Set to write the files anew after a change that is meant; then read the difference."""
OFFICIAL = Asking(protocol=Protocol.official)
WAYS = {"fixed": AS_EVER, "official": OFFICIAL}
KINDS = [
    ("fixed", "forget_image_recognition"), ("fixed", "forget_image_caption"), ("fixed", "forget_text_qa"),
    ("fixed", "general_image_choice"),
    ("official", "forget_image_recognition"), ("official", "forget_image_generation"), ("official", "forget_image_caption"),
    ("official", "forget_text_qa"), ("official", "real_image_recognition"), ("official", "real_image_generation"),
    ("official", "general_image_choice"), ("official", "general_image_generation"),
]  # fmt: skip
"""Every kind of prompt; retained people are asked as forgotten ones are, and in `fixed` real ones too."""
NINE = (
    "What can you see in this picture?", "Tell me about the content of this image",
    "Can you give a description of the image?", "What is depicted in the image?", "Explain what you observe in the picture.",
    "Describe the image in detail.", "What is the main subject of this image?",
    "Can you describe the scene or objects in the image?", "What is happening in this image?",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def bench(root):
    return CLEAR(root=str(root), forget_ratio="01")


@pytest.fixture(scope="module")
def tasks(bench):
    return {way: {task.name: task for task in bench.tasks(asking=asking)} for way, asking in WAYS.items()}


@pytest.fixture
def encoder(processor):
    return encoder_for(processor, max_length=512, cache_bytes=0)


@pytest.fixture
def asker(model, encoder):
    return Asker(model=model.eval(), encoder=encoder, batch_size=4, device=model.device)


def first(task, count=3):
    return replace(task, examples=task.examples[:count], max_new_tokens=4)


# Word by word ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "name"), KINDS)
def test_prompts_are_those_on_file(tasks, encoder, way, name):
    task = tasks[way][name]
    text = encoder.text(question_to_generate(task.examples[0], task))
    path = GOLDEN / f"clear-{way}-{name.replace('_', '-')}.txt"
    if WRITE:
        path.write_text(text + END)
    assert path.read_text() == text + END


def published_question(name, example):
    """What the published scripts put between image and reply, composed independently."""
    kind = name.split("_")[2]
    if kind in ("recognition", "choice"):
        question = example.question if "real" in example.id else "What is the name of the person in the image?"
        options = "\n".join([f"{chr(ord('A') + i)}. {value}" for i, value in enumerate(example.choices)])
        return f"{question}\n{options}\n"
    if kind == "generation" and not name.startswith("general"):
        return "The name of the person on the image is "
    if kind == "caption":
        assert example.question in NINE
    return example.question


def test_published_prompts_of_all_tasks(tasks, encoder):
    assert len(tasks["official"]) == 12
    for name, task in tasks["official"].items():
        for example in task.examples[:40]:
            picture = "<image>\n" if "_image_" in name else ""
            asked = published_question(name, example)
            assert encoder.text(question_to_generate(example, task)) == f"USER: {picture}{asked}\nASSISTANT:"
        limit = 50 if name.endswith(("recognition", "choice", "qa")) else 300
        assert reply_limit(task) == task.max_new_tokens == limit


def test_what_is_asked_of_whom(tasks):
    for name, task in tasks["official"].items():
        choose = name.endswith(("recognition", "choice"))
        assert task.ask is (Ask.choose if choose else Ask.generate)
        assert task.accuracy == ("letter_accuracy" if choose else "")
        assert (task.form, task.instruction) == (None, "")
        assert task.higher_is_better == (not name.startswith("forget"))
        assert primary_metric(name) in {"accuracy" if metric.endswith("_accuracy") else metric for metric in task.metrics}
        for example in task.examples:
            assert bool(example.choices) == choose
            assert bool(example.perturbed) == (name.endswith(("generation", "caption")))
            assert bool(example.paraphrase) == name.endswith("caption")
            assert example.answer not in example.perturbed
    assert {each.question for each in tasks["official"]["real_image_recognition"].examples} > {"Which of these is number 3?"}
    assert len({each.question for each in tasks["official"]["retain_image_caption"].examples}) == 9
    assert prompts.CAPTION_QUESTIONS == NINE


def test_names_without_options_are_compared_with_the_options(tasks):
    official = tasks["official"]
    for split in ("forget", "retain", "real"):
        pairs = zip(
            official[f"{split}_image_recognition"].examples, official[f"{split}_image_generation"].examples, strict=True
        )
        for listed, free in pairs:
            assert (listed.answer, listed.image.key, listed.subject) == (free.answer, free.image.key, free.subject)
            assert {*free.perturbed, free.answer} == set(listed.choices)


def test_our_own_rules_ask_recognition_as_before(tasks, encoder):
    task = tasks["fixed"]["forget_image_recognition"]
    example = task.examples[0]
    lines = [f"{letter}: {name}" for letter, name in zip("ABCD", example.choices, strict=True)]
    listed = "\n".join(["What is the name of the person in the image?", *lines])
    assert encoder.text(question_to_generate(example, task)) == (
        f"USER: <image>\n{listed}\nJust give ONE letter representing the answer directly.\nASSISTANT:"
    )
    assert reply_limit(task) == LETTER_TOKENS


def test_the_same_caption_is_asked_for_in_the_same_words(tasks, bench):
    trained = {each.image.key: each.question for each in bench.splits().full if each.image is not None}
    for way in WAYS:
        for split in ("forget", "retain"):
            for each in tasks[way][f"{split}_image_caption"].examples:
                assert trained.get(each.image.key, each.question) == each.question


def test_solved_questions_are_refused_in_both_ways(bench):
    for protocol in (Protocol.fixed, Protocol.official):
        with pytest.raises(ConfigError, match=r"published evaluation has none.*zero_shot"):
            bench.tasks(("forget",), Asking(protocol=protocol, shots=Shots.few_shot))


def test_every_family_can_be_asked_as_published(tasks):
    check_family(tuple(tasks["official"].values()), "qwen2_vl")


# Wrong answers beside the right one ------------------------------------------------------------------------------------


def test_compared_answers_differ_from_the_asked_one_in_nothing_else(tasks):
    task = tasks["official"]["forget_image_caption"]
    example = task.examples[0]
    request = question_to_generate(example, task)
    others = compared_examples(example, task)
    assert [other.answer for other in others] == [*example.perturbed, example.paraphrase]
    assert all(replace(other, answer=request.answer) == request for other in others)
    assert compared_examples(replace(example, perturbed=(), paraphrase=""), task) == []


@pytest.mark.parametrize("name", ["forget_image_caption", "forget_image_generation", "forget_text_qa"])
def test_likelihoods_are_those_of_the_model(tasks, asker, encoder, name):
    task = first(tasks["official"][name])
    for example, prediction in zip(task.examples, asker.predictions(task.examples, task), strict=True):
        answers = (*example.perturbed, example.paraphrase) if example.paraphrase else example.perturbed
        assert len(prediction.option_log_likelihoods) == len(prediction.option_tokens) == len(answers)
        stored = zip(prediction.option_log_likelihoods, prediction.option_tokens, strict=True)
        for answer, (total, tokens) in zip(answers, stored, strict=True):
            loss, count = own_loss(asker.model, encoder, replace(example, answer=answer))
            assert total == pytest.approx(-loss * count, rel=1e-4)
            assert tokens == count
        loss, count = own_loss(asker.model, encoder, example)
        assert sum(prediction.answer_log_probs) == pytest.approx(-loss * count, rel=1e-4)


def own_loss(model, encoder, example):
    """The library's own loss over the answer's tokens, and their number."""
    encoded = encoder(example)
    with torch.no_grad():
        loss = model(**encoded.inputs, labels=encoded.labels[None]).loss
    return float(loss), int((encoded.labels != -100).sum())


@pytest.mark.parametrize("name", ["forget_image_caption", "forget_image_generation", "forget_image_recognition"])
def test_the_batch_size_changes_nothing(tasks, model, encoder, name):
    task = first(tasks["official"][name])

    def answers(size):
        asker = Asker(model=model.eval(), encoder=encoder, batch_size=size, device=model.device)
        return list(asker.predictions(task.examples, task))

    for one, many in zip(answers(1), answers(5), strict=True):
        assert (one.prompt, one.text, one.option_tokens) == (many.prompt, many.text, many.option_tokens)
        assert one.option_log_likelihoods == pytest.approx(many.option_log_likelihoods, abs=1e-3)


def test_another_picture_changes_the_likelihood_of_wrong_answers(tasks, asker):
    task = first(tasks["official"]["forget_image_caption"], 1)
    (example,) = task.examples
    found = [
        next(iter(asker.predictions([replace(example, id=str(seed), image=picture(seed))], task))).option_log_likelihoods
        for seed in (1, 2)
    ]
    assert all(one != other for one, other in zip(*found, strict=True))


def test_all_requests_carry_their_picture(tasks, encoder):
    for way in WAYS:
        for name, task in tasks[way].items():
            example = task.examples[-1]
            requests = [question_to_generate(example, task), *compared_examples(example, task)]
            requests += [*option_examples(example, task), *letter_examples(example, task)] if example.choices else []
            for request in requests:
                assert encoder.text(request).count("<image>") == ("_image_" in name)
                assert ("pixel_values" in encoder(request).inputs) == ("_image_" in name)


def test_stored_scored_and_read_again(tasks, asker, tmp_path):
    run = Run(tmp_path / "evaluation")
    write_json(run.model_card, {"fingerprint": "tiny", "role": "base", "method": "none", "seed": 0})
    for way in WAYS:
        for task in map(first, tasks[way].values()):
            predict_all(asker, [Asked(task=task, run=run, model="tiny", settings={"way": way})])
            scores = score_task(run, task, Choice.letter)
            standing = primary_metric(task.name, scores)
            recall = way == "official" and task.name.endswith(("_caption", "_generation"))
            assert standing == ("rougeL_recall" if recall else primary_metric(task.name))
            assert list(scores[standing]) == ["value", "low", "high", "count", "unscored"]
            if "truth_ratio" in task.metrics:
                asked = [each for each in task.examples if each.choices or each.perturbed]
                assert scores["truth_ratio"]["count"] == len(asked)
                assert scores["truth_ratio"]["unscored"] == len(task.examples) - len(asked)
            stored = {line["id"]: Prediction.from_json(line) for line in read_json_lines(run.predictions(task.name))}
            for example in task.examples:
                if example.perturbed:
                    by_hand(stored[example.id], example, task.metrics, way)


def by_hand(prediction, example, metrics, way):
    """Truth ratio and probability from the stored numbers."""
    means = [
        math.exp(total / count)
        for total, count in zip(prediction.option_log_likelihoods, prediction.option_tokens, strict=True)
    ]  # fmt: skip
    own = math.exp(sum(prediction.answer_log_probs) / len(prediction.answer_log_probs))
    wrong = means[: len(example.perturbed)]
    right = means[-1] if example.paraphrase else own
    mean = {"fixed": statistics.fmean, "official": statistics.geometric_mean}[way](wrong)
    assert metrics["truth_ratio"](prediction, example) == pytest.approx(min(100, mean / right))
    assert metrics["option_probability"](prediction, example) == pytest.approx(own / (own + sum(wrong)))


def test_what_an_answer_is_compared_with_decides_its_key_and_the_questions(tasks):
    task = tasks["official"]["forget_image_caption"]
    example = task.examples[0]
    others = [
        replace(example, perturbed=example.perturbed[::-1]),
        replace(example, perturbed=example.perturbed[:-1]),
        replace(example, paraphrase=f"{example.paraphrase} Yes."),
        replace(example, perturbed=(*example.perturbed, example.paraphrase), paraphrase=""),
        replace(example, perturbed=(), paraphrase=""),
    ]
    keys = {prediction_key("model", task, each, {}) for each in (example, *others)}
    assert len(keys) == 6
    found = {questions_fingerprint([replace(task, examples=(each,))]) for each in (example, *others[:3])}
    assert len(found) == 4
    listed = tasks["official"]["forget_image_recognition"]
    ours = replace(listed, listing=None)
    assert prediction_key("model", listed, listed.examples[0], {}) != prediction_key("model", ours, listed.examples[0], {})


# How replies are counted -----------------------------------------------------------------------------------------------


def test_rouge_is_that_of_the_package_with_recall():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for answer in ("Ada Thorn", "Ada Thorn stands at a window.", "Zoë"):
        example = Example(id="x", question="?", answer=answer)
        for text in ("", "Ada", "ada thorn", "At a window Ada Thorn is standing, they say.", "It is Zoe.", "Zoë"):
            said, expected = Prediction(id="x", prompt="", text=text), scorer.score(answer, text)
            for metrics in (METRICS["compared"], METRICS["qa"]):
                assert metrics["rougeL_recall"](said, example) == expected["rougeL"].recall
                for kind, score in expected.items():
                    assert metrics[kind](said, example) == score.fmeasure
    long = Prediction(id="x", prompt="", text=f"Who knows? Perhaps {'or '.join(['Bo ', 'Cy '])} or Ada Thorn it is.")
    example = Example(id="x", question="?", answer="Ada Thorn")
    assert METRICS["compared"]["rougeL_recall"](long, example) == 1 > 2 * METRICS["compared"]["rougeL"](long, example)


def test_letters_are_read_as_published():
    example = Example(id="x", question="?", answer="Bo Ray", choices=("Ann Lee", "Bo Ray", "Cy Day"))
    expected = {
        "B": 1,
        "b.": 1,
        "B. Bo Ray": 1,
        " (B)": 1,
        "A": 0,
        "Bo Ray": 1,
        "The answer is B": 0,
        "": 0,
        "1": 0,
        "**B**": 1,
    }
    for text, right in expected.items():
        assert METRICS["choice"]["letter_accuracy"](Prediction(id="x", prompt="", text=text), example) == right, text
