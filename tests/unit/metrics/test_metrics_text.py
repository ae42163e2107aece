"""Text metrics against the libraries that they stand for."""

import math
import random
import string

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from mmunlearn.metrics import text

SENTENCE = "The doctor was born in Oslo running studies happily 1987 don't engineer's half-time e_mail (Dr.) cities; a of"
WORDS = SENTENCE.split()


def sentences(count):
    generator = random.Random(0)
    for _ in range(count):
        yield " ".join(generator.choices(WORDS, k=generator.randint(1, 12)))


@pytest.mark.parametrize(("kind", "metric"), [("rouge1", text.rouge1), ("rouge2", text.rouge2), ("rougeL", text.rouge_l)])
def test_rouge_is_the_default_scorer_on_ascii(kind, metric):
    scorer = RougeScorer([kind], use_stemmer=True)
    for answer, reply in zip(sentences(200), list(sentences(400))[200:], strict=True):
        assert metric(answer, reply) == pytest.approx(scorer.score(answer, reply)[kind].fmeasure, abs=1e-12)


def test_tokens_are_the_default_ones_on_any_ascii_string():
    from rouge_score.tokenizers import DefaultTokenizer

    default, generator = DefaultTokenizer(use_stemmer=True), random.Random(1)
    for _ in range(300):
        sample = "".join(generator.choices(string.printable, k=40))
        assert text.tokenize(sample) == default.tokenize(sample)


@pytest.mark.parametrize(
    ("sample", "tokens"),
    [
        ("Müller-Straße", ["müller", "straße"]),
        ("cafe\u0301", ["café"]),
        ("Ελληνικά нормально", ["ελληνικά", "нормально"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("你好 Oslo", ["你", "好", "oslo"]),
        ("… — ¿?", []),
    ],
)
def test_other_scripts_are_kept(sample, tokens):
    assert text.tokenize(sample) == tokens


def test_rouge_sees_differences_that_the_default_drops():
    default = RougeScorer(["rouge1"], use_stemmer=True)
    assert default.score("Москва", "Москва")["rouge1"].fmeasure == 0
    assert text.rouge1("Москва", "Москва") == 1
    assert text.rouge1("Москва", "Лондон") == 0


def test_bleu_is_the_call_of_the_published_evaluator():
    smoothing = SmoothingFunction().method1
    for answer, reply in zip(sentences(100), list(sentences(200))[100:], strict=True):
        assert text.bleu(answer, reply) == sentence_bleu([answer.split()], reply.split(), smoothing_function=smoothing)


def test_an_empty_reply_is_wrong_and_an_empty_answer_cannot_be_scored():
    for metric in (text.rouge1, text.rouge2, text.rouge_l, text.bleu, text.contains_answer):
        assert metric("born in Oslo", "") == 0
        assert math.isnan(metric(" ", "anything"))


@pytest.mark.parametrize(("reply", "expected"), [("She lives in OSLO.", 1.0), ("Bergen", 0.0), ("Os lo", 0.0)])
def test_cloze(reply, expected):
    assert text.contains_answer("Oslo", reply) == expected


@pytest.mark.parametrize(
    ("reply", "index"),
    [
        ("B", 1),
        ("b) Oslo", 1),
        ("**D.**", 3),
        ("\n (a)", 0),
        ("The answer is B", None),
        ("E", None),
        ("1", None),
        ("", None),
        ("…", None),
        ("ß", None),
    ],
)
def test_first_letter(reply, index):
    assert text.first_letter(reply, 4) == index


def test_letter_accuracy():
    choices = ("Oslo", "Bergen", "Paris")
    assert text.letter_accuracy("Bergen", choices, "B: Bergen") == 1
    assert text.letter_accuracy("Bergen", choices, "A") == 0
    assert math.isnan(text.letter_accuracy("Bergen", choices, "I do not know"))
    assert math.isnan(text.letter_accuracy("Rome", choices, "A"))
