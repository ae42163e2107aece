"""By whose rules the questions of MLLMU-Bench are asked: prompts word by word, who stands in shots, how replies are read."""

import os
import random
import re
import string
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from small_mllmu import ALL, FORGET, open_small, write_small
from tiny_cases import SIZE, tiny_model

from mmunlearn.benchmarks.base import AS_EVER, Asking
from mmunlearn.benchmarks.clear import CLEAR
from mmunlearn.benchmarks.mllmu_official import METRICS, SPLITS, letter_accuracy
from mmunlearn.benchmarks.mllmu_shots import with_other_people
from mmunlearn.config_enums import Choice, Protocol, Shots
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example, Prediction
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.predict import check_family
from mmunlearn.evaluation.requests import (
    check_choice,
    chosen_tasks,
    letter_examples,
    option_examples,
    prediction_key,
    question_to_generate,
)
from mmunlearn.evaluation.score import questions_fingerprint

GOLDEN = Path(__file__).parents[2] / "golden"
END = "[end of prompt]\n"
WRITE = os.environ.get("MMUNLEARN_WRITE_GOLDEN") == "1"
"""Set to write the files anew after a change that is meant; then read the difference."""
FEW = Asking(shots=Shots.few_shot)
PUBLISHED = Asking(protocol=Protocol.official)
PUBLISHED_FEW = Asking(protocol=Protocol.official, shots=Shots.few_shot)
WAYS = (AS_EVER, FEW, PUBLISHED, PUBLISHED_FEW)
each_way = pytest.mark.parametrize("asking", WAYS, ids=lambda way: f"{way.protocol}-{way.shots}")
LONG = replace(SIZE, max_length=2000)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny_model()[1], max_length=LONG.max_length)


def tasks_of(root, asking, splits=SPLITS, **settings):
    return {task.name: task for task in open_small(root, **settings).tasks(splits, asking)}


# --- word by word ----------------------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("name", ["choice", "cloze", "generation"])
def test_prompts_are_those_on_file(root, encoder, asking, kind, name):
    task = tasks_of(root, asking, ("forget",))[f"forget_{kind}_{name}"]
    text = encoder.text(question_to_generate(task.examples[-1], task))
    path = GOLDEN / f"mllmu-{asking.protocol}-{asking.shots}-{kind}-{name}.txt"
    if WRITE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + END)
    assert path.read_text() == text + END


def published_prompt(row, kind, name, shots):
    """The published scripts' text for LLaVA, composed independently: `shots` are (question, options, answer)."""
    image, question, options = "<image>" if kind == "image" else "", row[0], row[1]
    if name == "choice":
        before = "".join(
            f"USER:{' ' + image if image else ''}\nQuestion: {q}\n"
            + "".join(f"{letter}: {option}\n" for letter, option in zip("ABCD", o, strict=True))
            + f"Correct Answer: {'ABCD'[o.index(a)]}\n"
            for q, o, a in shots
        )
        listed = "\n".join(f"{letter}: {option}" for letter, option in zip("ABCD", options, strict=True))
        last = "Just give ONE letter representing the answer directly."
        return f"{before}USER:{' ' + image if image else ''}\n{question}\n{listed}\n{last}\nASSISTANT:"
    if name == "cloze":
        order = "Please **ONLY** provide the correct answer that should replace the [Blank]."
        before = "".join(f"USER:{image}\n{q}\n{order}\nCorrect Answer: {a}\n" for q, _, a in shots)
        return f"{before}USER:{' ' + image if image else ''}\n{question}\n{order}\nASSISTANT:"
    if image:
        order = "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."
        return f"USER: <image>\n{question}\n{order}\nASSISTANT: "
    return f"USER: {question}\nAnswer the question based on your trained knowledge in one sentence in ENGLISH.\nASSISTANT:"


@pytest.mark.parametrize("asking", [PUBLISHED, PUBLISHED_FEW], ids=lambda way: way.shots)
def test_published_prompts_of_all_tasks(root, encoder, asking):
    tasks = tasks_of(root, asking)
    assert {name.split("_")[0] for name in tasks} == set(SPLITS)
    for task in tasks.values():
        _, kind, name = task.name.split("_")
        for example in task.examples:
            shots = [(shot.question, shot.choices, shot.answer) for shot in example.shots]
            expected = published_prompt((example.question, example.choices), kind, name, shots)
            assert encoder.text(question_to_generate(example, task)) == expected
        assert task.max_new_tokens == 50


def test_every_pair_of_underscores_is_a_gap_as_published(root):
    ours, published = (tasks_of(root, way, ("forget",))["forget_image_cloze"].examples for way in (AS_EVER, PUBLISHED))
    assert ours[1].question == "this person is a [Blank] by trade."
    assert published[1].question == "this person is a [Blank][Blank] by trade."
    assert ours[0] == published[0]


def test_without_shots_our_own_rules_are_what_they_were(root, encoder):
    for name, task in tasks_of(root, AS_EVER).items():
        assert (task.form, task.accuracy) == (None, "")
        for example in task.examples:
            asked = question_to_generate(example, task)
            assert (asked.shots, asked.verbatim) == ((), False)
            placeholder = "<image>\n" if "_image_" in name else ""
            assert encoder.text(asked) == f"USER: {placeholder}{asked.question}\nASSISTANT:"
    default = open_small(root)
    assert questions_fingerprint(default.tasks()) == questions_fingerprint(default.tasks(asking=AS_EVER))


# --- who stands in shots ---------------------------------------------------------------------------------------------


def test_shots_of_our_own_rules_are_about_people_who_are_not_evaluated(root):
    for name, task in tasks_of(root, FEW).items():
        split, kind, _ = name.split("_")
        asked = {example.subject for example in task.examples}
        assert len(asked) == len(ALL[split])
        for example in task.examples:
            shown = [shot.subject for shot in example.shots]
            assert len(set(shown)) == len(shown) == 2
            assert not set(shown) & (asked | FORGET.keys()), "neither evaluated nor to be forgotten"
            assert all((shot.image is not None) == (kind == "image") for shot in example.shots)


def test_published_shots_are_about_evaluated_people_who_are_not_asked_about(root):
    people = defaultdict(set)
    for name, task in tasks_of(root, PUBLISHED_FEW).items():
        split, kind, ask = name.split("_")
        number = 0 if split == "real" else {"choice": 1, "cloze": 2, "generation": 0}[ask]
        asked = {example.subject for example in task.examples}
        (shown,) = {tuple(shot.subject for shot in example.shots) for example in task.examples}
        assert len(shown) == 2 * number, "all their questions of this kind"
        assert len(set(shown)) == number
        assert set(shown).isdisjoint(asked)
        if split != "real":
            assert asked | set(shown) == ALL[split].keys()
        people[split, ask].add(frozenset(shown))
        assert all((shot.image is not None) == (kind == "image") for shot in task.examples[0].shots)
    assert all(len(drawn) == 1 for drawn in people.values()), "the same people in both modalities"


def test_published_shots_of_other_portraits_show_the_usual_ones(root):
    tasks = tasks_of(root, PUBLISHED_FEW)
    usual = {example.subject: example.image.key for example in tasks_of(root, AS_EVER)["forget_image_choice"].examples}
    for example in tasks["test_image_choice"].examples:
        assert [shot.image.key for shot in example.shots] == [usual[shot.subject] for shot in example.shots]
        assert example.image.key not in usual.values()


@pytest.mark.parametrize("asking", [FEW, PUBLISHED_FEW], ids=lambda way: way.protocol)
def test_the_seed_decides_the_shots_and_nothing_else_does(root, asking):
    def shown(seed, splits=SPLITS):
        return {
            example.id: [(shot.subject, shot.question, shot.answer) for shot in example.shots]
            for task in tasks_of(root, asking, splits, seed=seed).values()
            for example in task.examples
        }

    first = shown(0)
    assert first == shown(0)
    assert shown(0, ("retain",)).items() <= first.items()
    assert len({str(sorted(shown(seed).items())) for seed in range(5)}) > 1


def test_evaluated_people_among_the_others_are_passed_over():
    def about(*people):
        return [Example(id=f"{person}/{n}", question="?", answer=str(n), subject=person) for person in people for n in range(3)]

    asked, others = about(*"abcdefgh"), about(*"abcdefghxyz")
    for example in with_other_people(asked, others, seed=0, split="forget"):
        shown = {shot.subject for shot in example.shots}
        assert len(shown) == 2
        assert shown <= {"x", "y", "z"}


def test_people_of_our_own_shots_change_from_question_to_question(root):
    examples = tasks_of(root, FEW, ("forget",))["forget_image_choice"].examples
    assert len({tuple(shot.subject for shot in example.shots) for example in examples}) > 2


def test_a_limit_leaves_shots_alone(root):
    whole = {example.id: example for task in open_small(root).tasks(SPLITS, FEW) for example in task.examples}
    few = [example for task in chosen_tasks(open_small(root), SPLITS, 2, FEW) for example in task.examples]
    assert all(whole[example.id] == example for example in few)


def test_too_few_people_for_published_shots(root, tmp_path, monkeypatch):
    monkeypatch.setattr("small_mllmu.FORGET", {"001": "Ada Quill", "002": "Bo Marsh"})
    bench = open_small(write_small(tmp_path))
    bench.tasks(("forget",), PUBLISHED)
    with pytest.raises(ConfigError, match=r"forget for the solved questions of cloze.*only 2.*zero_shot"):
        bench.tasks(("forget",), PUBLISHED_FEW)


def test_too_few_other_people_for_our_own_shots(tmp_path, monkeypatch):
    monkeypatch.setattr("small_mllmu.REAL", {"001": "Jo Star"})
    with pytest.raises(ConfigError, match=r"retain needs questions about 2 people.*only 1.*zero_shot"):
        open_small(write_small(tmp_path)).tasks(("retain",), FEW)


def test_clear_has_no_solved_questions():
    with pytest.raises(ConfigError, match=r"published evaluation has none.*zero_shot"):
        CLEAR().tasks(("forget",), FEW)


def test_published_rules_know_the_published_groups_only(root):
    bench = open_small(root)
    assert bench.tasks(("reworded", "holdout", "general"), PUBLISHED) == ()
    with pytest.raises(ConfigError, match="no question about holdout"):
        chosen_tasks(bench, ("holdout",), 0, PUBLISHED)


# --- what decides an answer ------------------------------------------------------------------------------------------


def test_every_way_of_asking_has_its_own_keys(root):
    keys = defaultdict(list)
    for way in WAYS:
        task = tasks_of(root, way, ("forget",))["forget_image_choice"]
        keys[task.examples[-1].id].append(prediction_key("model", task, task.examples[-1], {}))
        assert task.examples[-1].id.endswith("005/image/choice/1")
    assert [len(set(found)) for found in keys.values()] == [4]


def test_fingerprints_of_questions_tell_shots(root):
    found = {questions_fingerprint(open_small(root, seed=seed).tasks(SPLITS, FEW)) for seed in range(3)}
    assert len(found) > 1
    assert questions_fingerprint(open_small(root).tasks(SPLITS)) not in found


def test_another_picture_in_a_shot_is_another_question(root):
    task = tasks_of(root, FEW, ("forget",))["forget_image_choice"]
    first, second = task.examples[0], task.examples[-1]
    shots = (replace(first.shots[0], image=second.image), *first.shots[1:])
    assert prediction_key("m", task, first, {}) != prediction_key("m", task, replace(first, shots=shots), {})


@each_way
def test_all_requests_carry_their_pictures(root, encoder, asking):
    for task in tasks_of(root, asking, ("forget", "retain")).values():
        example = task.examples[-1]
        requests = [question_to_generate(example, task)]
        if example.choices:
            requests += [*option_examples(example, task), *letter_examples(example, task)]
        for request in requests:
            expected = 1 + len(example.shots) if "_image_" in task.name else 0
            assert encoder.text(request).count("<image>") == expected
            whole = encoder(request)
            assert len(whole.inputs.get("pixel_values", ())) == expected


@pytest.mark.parametrize("asking", [FEW, PUBLISHED_FEW], ids=lambda way: way.protocol)
def test_listed_shots_are_answered_by_letters_and_plain_ones_by_words(root, asking):
    task = tasks_of(root, asking, ("forget",))["forget_image_choice"]
    example = task.examples[0]
    for request in (question_to_generate(example, task), *letter_examples(example, task)):
        for shot, plain in zip(request.shots, example.shots, strict=True):
            assert shot.answer in "ABCD"
            assert f"{shot.answer}: {plain.answer}" in shot.question.split("\n")
    for request in option_examples(example, task):
        assert request.shots == example.shots


@each_way
def test_the_batch_size_changes_nothing_with_shots(root, asking):
    model, processor = tiny_model()
    encoder = Encoder(processor, max_length=LONG.max_length, cache_bytes=0)
    model.config.text_config.max_position_embeddings = LONG.max_length
    model.eval()

    def answers(batch_size):
        asker = Asker(model=model, encoder=encoder, batch_size=batch_size, device=torch.device("cpu"))
        return [
            prediction
            for name in ("choice", "cloze", "generation")
            for task in [replace(tasks_of(root, asking, ("forget",))[f"forget_image_{name}"], max_new_tokens=4)]
            for prediction in asker.predictions(task.examples[:2], task)
        ]

    for one, many in zip(answers(1), answers(3), strict=True):
        assert (one.id, one.prompt, one.text) == (many.id, many.prompt, many.text)
        assert one.answer_log_probs == pytest.approx(many.answer_log_probs, abs=1e-4)
        assert one.option_letter_probabilities == pytest.approx(many.option_letter_probabilities, abs=1e-4)


@pytest.mark.parametrize(("asking", "limits"), [(AS_EVER, {5, 50}), (PUBLISHED, {50})], ids=["fixed", "official"])
def test_how_long_replies_may_be(root, encoder, asking, limits):
    given = set()

    class Listening:
        generation_config = None

        def generate(self, *, input_ids, max_new_tokens, do_sample, num_beams, **inputs):
            assert (do_sample, num_beams) == (False, 1), "greedy"
            given.add(max_new_tokens)
            return input_ids

    asker = Asker(model=Listening(), encoder=encoder, batch_size=4, device=torch.device("cpu"))
    for task in tasks_of(root, asking, ("forget",)).values():
        with pytest.raises((TypeError, AttributeError)):  # likelihoods need a model
            next(asker.predictions(task.examples[:1], task))
    assert given == limits


@pytest.mark.parametrize("asking", [FEW, PUBLISHED_FEW], ids=lambda way: way.protocol)
def test_too_long_a_prompt_names_the_example_and_the_way_out(root, asking):
    encoder = Encoder(tiny_model()[1], max_length=60)
    task = tasks_of(root, asking, ("forget",))["forget_image_choice"]
    asked = question_to_generate(task.examples[0], task)
    with pytest.raises(DataError, match=rf"{re.escape(asked.id)}: \d+ tokens.*allows 60.*evaluation\.shots=zero_shot"):
        encoder.prompt(asked)


def test_a_family_without_published_prompts_is_refused(root):
    published = tuple(tasks_of(root, PUBLISHED).values())
    check_family(published, "llava")
    for other in ("qwen2_vl", "of no family in the table"):
        check_family(tuple(tasks_of(root, FEW).values()), other)
        with pytest.raises(ConfigError, match=rf"type llava, not for '{other}'.*protocol=fixed"):
            check_family(published, other)


# --- how replies are read --------------------------------------------------------------------------------------------

ODD = (
    "", " ", "B", "b", "(b) Lima", "**B.**", "\n\tB", "The answer is B", "Answer: B", "é B", "ß", "1. B", "2", "E", "D", "Б B",
    "½ B", "². B", "_B_", "ᵇ", "Ｂ", "ASSISTANT: B", "A B", "B" * 40, "…B", "'c'", "ı", "İ B", "Lima", "[Blank]", "ﬁ b",
)  # fmt: skip


def published_letter(text, options, correct):
    """The published lines: everything but ASCII letters and digits goes, and the first of the rest is the answer."""
    rest = "".join(character for character in text if character in string.ascii_letters + string.digits)
    predicted = rest[0].upper() if rest and rest[0].upper() in options else None
    return float(predicted == correct)


def reply(text):
    return Prediction(id="x", prompt="", text=text)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_letters_are_read_as_published(count):
    options = tuple(f"option {number}" for number in range(count))
    dice = random.Random(count)
    texts = [*ODD, *("".join(dice.choices("ABCDEabe12é½*. (\n", k=dice.randrange(6))) for _ in range(300))]
    for number, answer in enumerate(options):
        example = Example(id="x", question="?", answer=answer, choices=options)
        for text in texts:
            expected = published_letter(text, dict(zip("ABCDE", options, strict=False)), "ABCDE"[number])
            assert letter_accuracy(reply(text), example) == expected, text


def test_gaps_and_sentences_are_counted_as_published():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for answer in ("Lima", "St. John's", "Zürich", "She plays the cello", "!!!"):
        example = Example(id="x", question="?", answer=answer)
        for text in (*ODD, "lima", "In LIMA, Peru", "Zurich", "zürich", "she played cellos", "st john's", "St. JOHN'S!"):
            assert METRICS["cloze"]["cloze_accuracy"](reply(text), example) == float(answer.lower() in text.lower())
            expected = scorer.score(answer, text)
            for kind in expected:
                assert METRICS["generation"][kind](reply(text), example) == expected[kind].fmeasure


def test_the_score_that_published_rules_do_not_know_is_refused():
    check_choice(AS_EVER, Choice.text)
    check_choice(PUBLISHED, Choice.letter)
    with pytest.raises(ConfigError, match=r"evaluation\.choice: text"):
        check_choice(PUBLISHED, Choice.text)
