"""What is left of a model: utility as one number, the gap to gold models, and whether replies have collapsed."""

import math
import statistics
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from mmunlearn.metrics.text import tokenize

REPETITIVE = 0.5
"""From this share of repeated pairs on a reply counts as going round in circles; ordinary prose stays below 0.1."""
FEWEST_TOKENS = 4
"""Shorter replies cannot be told from an answer that repeats a word ("no, no")."""
LONG_WORD = 16
"""Longer words are read character by character: a collapsed model may write "lalalalalalalala"."""


@dataclass(frozen=True, kw_only=True)
class Utility:
    """The harmonic mean of several numbers, with what it is missing."""

    value: float
    """NaN if a component could not be scored, or if there is none."""
    count: int
    """Number of components."""
    unscored: tuple[str, ...]
    """Names of the components that are NaN, for the message that explains why there is no value."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The distance of a number to gold models, and how far gold models lie from each other."""

    gap: float
    """value - mean of the golds; NaN without a value or a gold."""
    noise_floor: float
    """Largest difference between two golds; NaN with fewer than two."""
    golds: int
    """Scored gold models."""

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the gap is larger than what another seed does; None where that is not known."""
        return None if math.isnan(self.gap) or math.isnan(self.noise_floor) else abs(self.gap) > self.noise_floor


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """How many replies say nothing; shares of all replies, NaN without any."""

    count: int
    empty: float
    """Share without a letter, digit or symbol."""
    repetitive: float
    """Share that goes round in circles."""
    same: float
    """Share of the most common reply."""
    collapsed: float
    """Share that is empty, goes round in circles, or is the one reply that more than half of the questions got."""


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean, n / sum_i 1/x_i, for numbers from 0 on; a zero gives 0, a NaN or nothing at all gives NaN.

    Range: that of the numbers, higher is better; one bad number cannot be made up for by good ones. A NaN is not left
    out: a model would gain by becoming unscorable.

    Raises:
        ValueError: a number is negative.
    """
    if any(value < 0 for value in values):
        raise ValueError(f"The harmonic mean is for numbers from 0 on, not {min(values)}.")
    if not values or any(map(math.isnan, values)):
        return math.nan
    return float(statistics.harmonic_mean(values))


def model_utility(components: Mapping[str, float]) -> Utility:
    """The harmonic mean of named numbers about what is to be kept.

    Range 0 to 1 for components in that range, higher is better. Unweighted, whatever the numbers of questions.
    Source: TOFU's "model utility", the harmonic mean of probability, ROUGE-L recall and truth ratio (`retain_form`) on
    retain, real people and world facts.
    Deviation: components are named by the caller; if one is NaN, so is the whole, and `unscored` says which.

    Args:
        components: value by name.
    """
    unscored = tuple(name for name, value in components.items() if math.isnan(value))
    return Utility(value=harmonic_mean(list(components.values())), count=len(components), unscored=unscored)


def gap_to_gold(value: float, golds: Sequence[float]) -> Gap:
    """Value less the mean of the gold models, with the noise floor: the largest difference between two gold seeds.

    Range -1 to 1 for numbers between 0 and 1; the ideal is 0. A gap inside the noise floor is what another seed of the
    same gold training does. Source: the retrain gap of exact unlearning; the noise floor is this project's.

    Args:
        value: of the unlearned model.
        golds: the same number of each gold model (seeds); NaN ones are left out and not counted.
    """
    scored = [gold for gold in golds if not math.isnan(gold)]
    return Gap(
        gap=value - statistics.fmean(scored) if scored else math.nan,
        noise_floor=max(scored) - min(scored) if len(scored) > 1 else math.nan,
        golds=len(scored),
    )


def distinct(text: str, n: int) -> float:
    """Number of different n-grams divided by the number of n-grams. Range 0 to 1, higher: more varied.

    Source: distinct-1 and distinct-2 of Li et al. (2016, arXiv:1510.03055).
    Deviations: of one text, not of all replies together. Tokens are those of `metrics.text.tokenize` (letters of all
    scripts, without case), and every other visible symbol, emoji too, is one by itself; so are the characters of words
    longer than 16. NaN where the text is shorter than n tokens.

    Args:
        text: what the model wrote.
        n: tokens in a row, 1 or more.
    """
    grams = _grams(_tokens(text), n)
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str) -> float:
    """1 - distinct-2: the share of pairs of neighbouring tokens that stood before. Range 0 to 1, higher: more circular.

    0 for texts with fewer than two pairs, which cannot repeat one. See `distinct`.
    """
    pairs = distinct(text, 2)
    return 0.0 if math.isnan(pairs) else 1 - pairs


def share_of_same_reply(texts: Sequence[str]) -> float:
    """Share of the replies that are the most common one, whatever the case and white space. Range 1/n to 1; NaN for none.

    For free answers to different questions. Letters of multiple choice and yes or no are alike by nature.
    """
    counts = Counter(map(_plain, texts))
    return max(counts.values()) / len(texts) if counts else math.nan


def collapse(texts: Sequence[str]) -> Collapse:
    """Shares of replies that say nothing: empty, circular, or the same to more than half of the questions.

    Range 0 to 1, higher: more broken. For free answers; compare with vanilla and gold, since a data set may itself
    expect one answer to most questions. Circular: at least 4 tokens and at least half of the pairs stood before
    (`repetition`). Source: this project; the collapse of gradient ascent otherwise looks like perfect forgetting.

    Args:
        texts: what the model wrote, one a question.
    """
    if not texts:
        return Collapse(count=0, empty=math.nan, repetitive=math.nan, same=math.nan, collapsed=math.nan)
    plain = [_plain(text) for text in texts]
    common, times = Counter(plain).most_common(1)[0]
    empty = [not _tokens(text) for text in texts]
    circular = [_is_circular(text) for text in texts]
    same = [text == common and len(texts) > 1 and times > len(texts) / 2 for text in plain]
    return Collapse(
        count=len(texts),
        empty=statistics.fmean(empty),
        repetitive=statistics.fmean(circular),
        same=share_of_same_reply(texts),
        collapsed=statistics.fmean(map(any, zip(empty, circular, same, strict=True))),
    )


def _is_circular(text: str) -> bool:
    return len(_tokens(text)) >= FEWEST_TOKENS and repetition(text) >= REPETITIVE


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


@lru_cache(maxsize=2**16)  # a report looks at each reply several times
def _tokens(text: str) -> tuple[str, ...]:
    """Words and single symbols, in the order of the text."""
    found: list[str] = []
    for kind, characters in groupby(text, _kind):
        if kind == "word":
            words = tokenize("".join(characters))
            found += [piece for word in words for piece in (word if len(word) > LONG_WORD else [word])]
        elif kind == "symbol":
            found += characters
    return tuple(found)


def _kind(character: str) -> str:
    """A letter, digit or mark belongs to a word; punctuation, emoji and the like stand alone; the rest separates."""
    return {"L": "word", "N": "word", "M": "word", "P": "symbol", "S": "symbol"}.get(
        unicodedata.category(character)[0], "space"
    )
