"""A model that is asked in batches: what it writes, and how likely it finds given answers.

Legend: B sequences, N supervised tokens, V vocabulary, k options.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.benchmarks.prompts import LETTERS
from mmunlearn.data.batch import IGNORE, Batch, Encoded, Encoder, collate
from mmunlearn.data.example import Example, Prediction
from mmunlearn.errors import DataError
from mmunlearn.evaluation.requests import (
    compared_examples,
    letter_examples,
    option_examples,
    question_to_generate,
    reply_limit,
)
from mmunlearn.evaluation.shared import Shared
from mmunlearn.evaluation.together import Requests, answer_together, pictures
from mmunlearn.models.continuation import writes_plainly
from mmunlearn.models.likelihood import TokenStatistics, answer_logits, answer_statistics, sequence_counts


class Reply(NamedTuple):
    """What a model wrote."""

    text: str
    smallest_gap: float | None
    """As in `Prediction`."""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A model that is asked in batches; it must not change meanwhile, because no request is computed twice.

    The batch size changes speed, and no answer but those that `evaluation/ties.py` calls near-ties.
    """

    model: nn.Module
    encoder: Encoder
    batch_size: int
    device: torch.device
    shares_prefix: bool = False
    """Whether requests that begin alike are read together (`models/prefix.py`); only where `can_share` says that it is sound.
    Otherwise each request is a row of a batch. The answers are the same."""
    replies: Shared[Reply] = field(default_factory=Shared, repr=False)
    answers: Shared[TokenStatistics] = field(default_factory=Shared, repr=False)
    letters: Shared[Tensor] = field(default_factory=Shared, repr=False)
    letter_ids: dict[Hashable, list[int]] = field(default_factory=dict, repr=False)
    """The token that each letter begins with, by what stands before it (see `_letter_tokens`)."""

    def ordered(self, examples: Sequence[Example], task: Task) -> list[Example]:
        """Such that examples which follow each other fill their batches well: alike in pictures and in length.

        A batch generates until its longest reply ends, so the length that the expected answer has comes first where
        replies are free; then that of the prompt. Pictures count as one token each here; how many they really take is
        known only when they are processed, and looked at when batches are made. Where requests are read together, those about
        the same pictures come together instead.
        """
        requests = [question_to_generate(example, task) for example in examples]
        prompts = self._lengths([self.encoder.text(request) for request in requests])
        replies = self._lengths([e.answer for e in examples]) if task.ask is Ask.generate else [0] * len(examples)
        shown = [pictures(request) for request in requests]
        shared = [keys if self.shares_prefix else () for keys in shown]
        places = sorted(
            range(len(examples)), key=lambda place: (len(shown[place]), shared[place], replies[place], prompts[place])
        )
        return [examples[place] for place in places]

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        found = self.encoder.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [len(ids) for ids in found]

    def predictions(self, examples: Sequence[Example], task: Task) -> Iterator[Prediction]:
        """Answers of one group of examples, in order."""
        requests = [question_to_generate(example, task) for example in examples]
        if self.shares_prefix:
            self._read_together(_all_requests(examples, requests, task))
        replies = self.generate(requests, reply_limit(task))
        details = self._details(examples, requests, task)
        for example, request, reply, detail in zip(examples, requests, replies, details, strict=True):
            prompt = self.encoder.text(request)
            yield Prediction(id=example.id, prompt=prompt, text=reply.text, smallest_gap=reply.smallest_gap, **detail)

    def generate(self, examples: Sequence[Example], max_new_tokens: int) -> list[Reply]:
        """Greedy replies."""
        if self.shares_prefix:
            self._read_together(Requests(asked=examples, limit=max_new_tokens))
        keys = [self._reply_key(example, max_new_tokens) for example in examples]
        return self.replies.each(keys, lambda new: self._generate([examples[place] for place in new], max_new_tokens))

    def _reply_key(self, example: Example, max_new_tokens: int) -> Hashable:
        return self.encoder.text(example), pictures(example), max_new_tokens

    def _answer_key(self, example: Example) -> Hashable:
        return self.encoder.text(example), example.verbatim, pictures(example), example.answer

    def _letter_key(self, order: Example) -> Hashable:
        return self.encoder.text(order), order.verbatim, pictures(order), len(order.choices)

    def _read_together(self, requests: Requests) -> None:
        """Answer all requests that are not answered yet; where a reply takes more than the likeliest token, not the replies."""
        asked = requests.asked if writes_plainly(self.model) else ()
        reply_keys = [self._reply_key(example, requests.limit) for example in asked]
        answer_keys = [self._answer_key(example) for example in requests.scored]
        letter_keys = [self._letter_key(order) for order in requests.lettered]
        new_replies, new_answers = self.replies.unknown(reply_keys), self.answers.unknown(answer_keys)
        new_letters = self.letters.unknown(letter_keys)
        orders = [requests.lettered[place] for place in new_letters]
        found = answer_together(
            self.model,
            self.encoder,
            Requests(
                scored=[requests.scored[place] for place in new_answers],
                lettered=orders,
                asked=[asked[place] for place in new_replies],
                limit=requests.limit,
            ),
            self._letter_tokens(orders),
            batch_size=self.batch_size,
            device=self.device,
        )
        decode = self.encoder.processor.tokenizer.decode
        replies = [
            Reply(
                decode(each.ids, skip_special_tokens=True).strip(),
                each.smallest_gap if math.isfinite(each.smallest_gap) else None,
            )
            for each in found.written
        ]
        self.replies.learn([reply_keys[place] for place in new_replies], replies)
        self.answers.learn([answer_keys[place] for place in new_answers], found.statistics)
        rows = [row.double().softmax(dim=-1) for row in found.letters]
        self.letters.learn([letter_keys[place] for place in new_letters], rows)

    def _generate(self, examples: Sequence[Example], max_new_tokens: int) -> list[Reply]:
        found: dict[int, Reply] = {}
        tokenizer = self.encoder.processor.tokenizer
        expected = self._lengths([example.answer for example in examples])
        prompts = [self.encoder.prompt(example) for example in examples]
        order = sorted(
            range(len(prompts)), key=lambda place: (min(expected[place], max_new_tokens), len(prompts[place].labels))
        )
        for places, batch in self._batches(prompts, order, left=True):
            gaps = SmallestGaps(self.encoder.end_token_id)
            model: Any = self.model
            with torch.inference_mode():
                ids = model.generate(
                    **batch.inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=self.encoder.pad_token_id,
                    eos_token_id=self.encoder.end_token_id,
                    logits_processor=LogitsProcessorList([gaps]),
                )
            texts = tokenizer.batch_decode(ids[:, batch.labels.shape[1] :], skip_special_tokens=True)
            for place, text, gap in zip(places, texts, gaps.found(len(places)), strict=True):
                found[place] = Reply(text.strip(), gap)
        return [found[place] for place in range(len(examples))]

    def statistics(self, examples: Sequence[Example]) -> list[TokenStatistics]:
        """Token statistics of each example's answer under teacher forcing; fields are [tokens of that answer]."""
        if self.shares_prefix:
            self._read_together(Requests(scored=examples))
        keys = [self._answer_key(example) for example in examples]
        return self.answers.each(keys, lambda new: self._statistics([examples[place] for place in new]))

    def _statistics(self, examples: Sequence[Example]) -> list[TokenStatistics]:
        found: dict[int, TokenStatistics] = {}
        encoded = [self.encoder(example) for example in examples]
        for places, batch in self._batches(encoded, _by_length(encoded)):
            whole = answer_statistics(self.model, batch)
            counts = sequence_counts(batch).tolist()
            columns = [torch.split(values.cpu(), counts) for values in whole]
            found |= dict(zip(places, (TokenStatistics(*row) for row in zip(*columns, strict=True)), strict=True))
        return [found[place] for place in range(len(examples))]

    def _details(self, examples: Sequence[Example], requests: Sequence[Example], task: Task) -> list[dict[str, Any]]:
        """The likelihoods that are kept of each example, by the names of a `Prediction`'s fields."""
        if task.ask is Ask.choose:
            return self._choices(examples, task)
        others = iter(self.statistics([other for example in examples for other in compared_examples(example, task)]))
        return [
            _answer_fields(statistics) | _option_fields(list(islice(others, len(example.compared()))))
            for example, statistics in zip(examples, self.statistics(requests), strict=True)
        ]

    def _choices(self, examples: Sequence[Example], task: Task) -> list[dict[str, Any]]:
        """The three choice scores; rows of all examples are batched together."""
        options = iter(self.statistics([option for example in examples for option in option_examples(example, task)]))
        letters = iter(self._letter_probabilities([order for example in examples for order in letter_examples(example, task)]))
        details = []
        for example in examples:
            own = list(islice(options, len(example.choices)))
            details.append(
                _answer_fields(own[example.choices.index(example.answer)])
                | _option_fields(own)
                | {"option_letter_probabilities": average_over_orders(list(islice(letters, len(own))))}
            )
        return details

    def _letter_probabilities(self, orders: Sequence[Example]) -> list[Tensor]:
        """For each listed question, the softmax over its letters: [k], float64."""
        keys = [self._letter_key(order) for order in orders]
        return self.letters.each(keys, lambda new: self._first_letters([orders[place] for place in new]))

    def _letter_tokens(self, orders: Sequence[Example]) -> list[list[int]]:
        """For each listed question the token that each of its letters begins with, there where it is scored.

        A letter may be another token behind a text that is given as it is than behind the chat template ("A" or " A"). What
        decides is taken to be the prompt's last line, so each of these is tokenised once, with every letter.

        Raises:
            DataError: the letters of a listed question cannot be told apart by it.
        """
        return [self._letters_behind(order) for order in orders]

    def _letters_behind(self, order: Example) -> list[int]:
        prompt = self.encoder.text(order)
        last_line = prompt[prompt.rstrip().rfind("\n") + 1 :]
        letters = LETTERS[: len(order.choices)]
        key = order.verbatim, last_line, len(letters)
        if key not in self.letter_ids:
            tokens = self.encoder.first_tokens(letters, order)
            if len(set(tokens)) < len(letters):
                raise DataError(
                    f"{order.id}: the tokenizer begins several answer letters with one and the same token, so they cannot be "
                    "told apart."
                )
            self.letter_ids[key] = tokens
        return self.letter_ids[key]

    def _first_letters(self, orders: Sequence[Example]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        encoded = [_first_token_only(self.encoder(order)) for order in orders]
        tokens = self._letter_tokens(orders)
        for places, batch in self._batches(encoded, _by_length(encoded)):
            with torch.inference_mode():
                rows = answer_logits(self.model, batch)
            for place, row in zip(places, rows, strict=True):
                found[place] = row[tokens[place]].cpu().double().softmax(dim=-1)
        return [found[place] for place in range(len(orders))]

    def _batches(
        self, encoded: Sequence[Encoded], order: Sequence[int], *, left: bool = False
    ) -> Iterator[tuple[Sequence[int], Batch]]:
        """Batches of rows in the given order, each with the positions of its rows."""
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            rows = [encoded[place] for place in places]
            yield places, collate(rows, pad_token_id=self.encoder.pad_token_id, left=left).to(self.device)


class SmallestGaps:
    """While a model generates: the smallest gap between the two best logits of each row, until the row has ended.

    A logits processor that changes nothing. It keeps one number a row; `generate(output_logits=True)` would keep
    B x tokens x V of them.
    """

    def __init__(self, end_token_id: int) -> None:
        """Prepare for one call of `generate`.

        Args:
            end_token_id: what ends a reply.
        """
        self.end_token_id = end_token_id
        self._smallest: Tensor | None = None
        self._ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at one step.

        Args:
            input_ids: [B, T], all tokens so far.
            scores: [B, V], the logits of the next one; returned as they are.
        """
        best = scores.topk(2, dim=-1).values
        gaps = best[:, 0] - best[:, 1]
        if self._smallest is None or self._ended is None:  # the last token is the prompt's
            self._smallest, self._ended = gaps, torch.zeros_like(gaps, dtype=torch.bool)
            return scores
        self._ended = self._ended | (input_ids[:, -1] == self.end_token_id)
        self._smallest = torch.where(self._ended, self._smallest, torch.minimum(self._smallest, gaps))
        return scores

    def found(self, rows: int) -> list[float | None]:
        """For each row its smallest gap; None where there is no finite one, as with a destroyed model."""
        gaps = [math.nan] * rows if self._smallest is None else self._smallest.tolist()
        return [gap if math.isfinite(gap) else None for gap in gaps]


def average_over_orders(rows: Sequence[Tensor]) -> tuple[float, ...]:
    """Probability of each option, averaged over all cyclic orders, so that no option gains by its letter.

    Args:
        rows: k tensors of [k]; in row `shift`, entry `i` belongs to option `(i + shift) % k`.

    Returns:
        k probabilities, in the order of the options.
    """
    aligned = [row.roll(shift) for shift, row in enumerate(rows)]
    return tuple(torch.stack(aligned).mean(dim=0).tolist())


def _by_length(encoded: Sequence[Encoded]) -> list[int]:
    """Positions, the shortest first: rows of alike length need little padding."""
    return sorted(range(len(encoded)), key=lambda place: len(encoded[place].labels))


def _all_requests(examples: Sequence[Example], requests: Sequence[Example], task: Task) -> Requests:
    """All that is asked about some examples."""
    if task.ask is Ask.choose:
        scored = [option for example in examples for option in option_examples(example, task)]
    else:
        scored = [*requests, *(other for example in examples for other in compared_examples(example, task))]
    orders = [order for example in examples for order in letter_examples(example, task)] if task.ask is Ask.choose else []
    return Requests(scored=scored, lettered=orders, asked=requests, limit=reply_limit(task))


def _answer_fields(statistics: TokenStatistics) -> dict[str, Any]:
    return {
        "answer_log_probs": tuple(statistics.log_probs.tolist()),
        "answer_hits": tuple(statistics.hits.tolist()),
        "vocabulary_means": tuple(statistics.means.tolist()),
        "vocabulary_deviations": tuple(statistics.deviations.tolist()),
    }


def _option_fields(options: Sequence[TokenStatistics]) -> dict[str, Any]:
    return {
        "option_log_likelihoods": tuple(float(option.log_probs.sum()) for option in options),
        "option_tokens": tuple(len(option.log_probs) for option in options),
    }


def _first_token_only(encoded: Encoded) -> Encoded:
    """Supervise the first answer token alone: all that a letter takes."""
    labels = torch.full_like(encoded.labels, IGNORE)
    first = int((encoded.labels != IGNORE).nonzero()[0])
    labels[first] = encoded.labels[first]
    return replace(encoded, labels=labels)
