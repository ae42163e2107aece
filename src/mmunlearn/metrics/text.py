"""Metrics of generated text: ROUGE, BLEU, the filled blank, and the letter of a multiple-choice reply.

All are pure functions of two strings. `math.nan` means that there was nothing to compare with, never a wrong answer.
"""

import math
import re
import string
import unicodedata
from collections.abc import Sequence
from functools import cache

from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

# Scripts written without spaces between words: each character (with its marks) is a token there, for with whole
# sentences as tokens ROUGE would be all or nothing. Thai, Lao, Myanmar, Khmer; Hiragana, Katakana; Han and extensions.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARK = "\uffff"  # a character that no text contains; stands for a combining mark, which `\w` does not match
_TOKEN = re.compile(rf"[{_UNSPACED}]{_MARK}*|(?:[^\W_{_UNSPACED}]{_MARK}*)+")

LETTERS = string.ascii_uppercase


@cache
def _stemmer() -> PorterStemmer:
    return PorterStemmer()


@cache
def _stem(word: str) -> str:
    return str(_stemmer().stem(word))


def tokenize(text: str) -> list[str]:
    """Split text into lower-case words, those of English reduced to their stems.

    Equal to the default tokenizer of `rouge_score` (with stemmer) on ASCII text. That one throws every other character
    away, so that "Müller" becomes "m", "ller" and a Chinese answer becomes nothing; here letters of all scripts are
    kept, scripts without spaces are split into characters, and only ASCII words are stemmed, Porter's rules being
    English.
    """
    text = unicodedata.normalize("NFC", text.lower())
    shape = "".join(_MARK if unicodedata.category(character)[0] == "M" else character for character in text)
    tokens = [text[match.start() : match.end()] for match in _TOKEN.finditer(shape)]
    return [_stem(token) if len(token) > 3 and token.isascii() else token for token in tokens]


class _Tokenizer:
    """The shape in which `rouge_score` takes a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return tokenize(text)


@cache
def _scorer(kind: str) -> RougeScorer:
    return RougeScorer([kind], tokenizer=_Tokenizer())


def _rouge(kind: str, answer: str, text: str) -> float:
    if not tokenize(answer):
        return math.nan
    return float(_scorer(kind).score(answer, text)[kind].fmeasure)


def rouge1(answer: str, text: str) -> float:
    """ROUGE-1 F1, 0 to 1: shared words.

    Source: `rouge_score` with stemmer, as MLLMU-Bench's evaluator calls it (CLEAR and TOFU report recall instead).
    Deviation: non-ASCII letters count, see `tokenize`. NaN where the expected answer has no word.

    Args:
        answer: what the data set expects.
        text: what the model wrote.
    """
    return _rouge("rouge1", answer, text)


def rouge2(answer: str, text: str) -> float:
    """ROUGE-2 F1, 0 to 1: shared pairs of neighbouring words; always 0 where one word is expected. See `rouge1`."""
    return _rouge("rouge2", answer, text)


def rouge_l(answer: str, text: str) -> float:
    """ROUGE-L F1, 0 to 1: the longest common subsequence of words. See `rouge1`."""
    return _rouge("rougeL", answer, text)


def bleu(answer: str, text: str) -> float:
    """Sentence BLEU-4, 0 to 1, smoothing method 1, words split at white space, case kept.

    Source: MLLMU-Bench's evaluator (`nltk.translate.bleu_score.sentence_bleu`). NaN where the expected answer is empty.
    A reply that shares no word scores 0; an answer shorter than four words cannot reach 1, as in the published numbers.

    Args:
        answer: what the data set expects.
        text: what the model wrote.
    """
    if not answer.split():
        return math.nan
    return float(sentence_bleu([answer.split()], text.split(), smoothing_function=SmoothingFunction().method1))


def contains_answer(answer: str, text: str) -> float:
    """1.0 if the expected words stand anywhere in the reply, whatever the case, else 0.0.

    Source: the cloze score of MLLMU-Bench's evaluator, `gt.lower() in response.lower()`. Lenient: "art" is found in
    "party". NaN where the expected answer is blank, which every reply would contain.

    Args:
        answer: what fills the blank.
        text: what the model wrote.
    """
    if not answer.strip():
        return math.nan
    return float(answer.lower() in text.lower())


def first_letter(text: str, options: int) -> int | None:
    """The option that a reply names: its first alphanumeric character, in either case.

    Source: MLLMU-Bench's evaluator. So "B", "(b) …" and "**B.**" are the second option, and "The answer is B" is not
    understood, its first character being no option's letter.

    Args:
        text: what the model wrote.
        options: how many options were listed, A first.

    Returns:
        The option's index, or None if the reply could not be understood.
    """
    first = next((character for character in text if character.isalnum()), "").upper()
    index = LETTERS.find(first) if first else -1
    return index if 0 <= index < options else None


def letter_accuracy(answer: str, choices: Sequence[str], text: str) -> float:
    """1.0 if the reply names the right option, 0.0 if another, NaN if none (`first_letter`) or the answer is no option.

    Deviation: published evaluators count a reply that was not understood as wrong; here it is counted on its own,
    because a model that has become unable to answer has not thereby been shown to have forgotten.

    Args:
        answer: the text of the right option.
        choices: the options in the order in which they were listed.
        text: what the model wrote.
    """
    chosen = first_letter(text, len(choices))
    if chosen is None or answer not in choices:
        return math.nan
    return float(choices[chosen] == answer)
