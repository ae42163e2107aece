"""Ask a model every question of a task and keep all that it said. The only part of evaluation that runs a model.

Legend: B sequences, N supervised tokens, V vocabulary, k options.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.benchmarks.prompts import LETTERS
from mmunlearn.data.batch import IGNORE, Batch, Encoded, Encoder, collate
from mmunlearn.data.example import Example, Prediction
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.evaluation.requests import (
    LETTER_TOKENS,
    letter_examples,
    option_examples,
    prediction_key,
    question_to_generate,
)
from mmunlearn.models.families import FAMILIES, Family
from mmunlearn.models.likelihood import TokenStatistics, answer_logits, answer_statistics, sequence_counts
from mmunlearn.progress import progress
from mmunlearn.run import Run, append_json_line, read_json_lines, write_json_lines


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A model that is asked in batches. The batch size changes speed only."""

    model: nn.Module
    encoder: Encoder
    batch_size: int
    device: torch.device

    def predictions(self, examples: Sequence[Example], task: Task) -> Iterator[Prediction]:
        """Answers of one group of examples, in order."""
        requests = [question_to_generate(example, task) for example in examples]
        limit = LETTER_TOKENS if task.ask is Ask.choose and task.form is None else task.max_new_tokens
        texts = self.generate(requests, limit)
        if task.ask is Ask.choose:
            details = self._choices(examples, task)
        else:
            details = [_answer_fields(statistics) for statistics in self.statistics(requests)]
        for example, request, text, detail in zip(examples, requests, texts, details, strict=True):
            yield Prediction(id=example.id, prompt=self.encoder.text(request), text=text, **detail)

    def generate(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        texts: list[str] = []
        for start in range(0, len(examples), self.batch_size):
            prompts = [self.encoder.prompt(example) for example in examples[start : start + self.batch_size]]
            batch = collate(prompts, pad_token_id=self.encoder.pad_token_id, left=True).to(self.device)
            width = batch.labels.shape[1]
            model: Any = self.model
            with torch.inference_mode():
                ids = model.generate(
                    **batch.inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=self.encoder.pad_token_id,
                    eos_token_id=self.encoder.end_token_id,
                )
            tokenizer = self.encoder.processor.tokenizer
            texts += [text.strip() for text in tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)]
        return texts

    def statistics(self, examples: Sequence[Example]) -> list[TokenStatistics]:
        """Token statistics of each example's answer under teacher forcing; fields are [tokens of that answer]."""
        found: list[TokenStatistics] = []
        for _, batch in self._batches([self.encoder(example) for example in examples]):
            whole = answer_statistics(self.model, batch)
            counts = sequence_counts(batch).tolist()
            columns = [torch.split(field.cpu(), counts) for field in whole]
            found += [TokenStatistics(*row) for row in zip(*columns, strict=True)]
        return found

    def _choices(self, examples: Sequence[Example], task: Task) -> list[dict[str, Any]]:
        """The three choice scores; rows of all examples are batched together."""
        options = iter(self.statistics([option for example in examples for option in option_examples(example, task)]))
        letters = iter(self._letter_probabilities([order for example in examples for order in letter_examples(example, task)]))
        details = []
        for example in examples:
            own = list(islice(options, len(example.choices)))
            details.append(
                _answer_fields(own[example.choices.index(example.answer)])
                | {
                    "option_log_likelihoods": tuple(float(option.log_probs.sum()) for option in own),
                    "option_tokens": tuple(len(option.log_probs) for option in own),
                    "option_letter_probabilities": average_over_orders(list(islice(letters, len(own)))),
                }
            )
        return details

    def _letter_probabilities(self, orders: Sequence[Example]) -> list[Tensor]:
        """For each listed question, the softmax over its letters: [k], float64."""
        found: list[Tensor] = []
        tokens = torch.tensor(self.encoder.first_tokens(LETTERS))
        most = max((len(order.choices) for order in orders), default=0)
        if len(set(tokens[:most].tolist())) < most:
            raise DataError(
                "The tokenizer begins several answer letters with one and the same token, so they cannot be told apart."
            )
        for start, batch in self._batches([_first_token_only(self.encoder(order)) for order in orders]):
            with torch.inference_mode():
                logits = answer_logits(self.model, batch).cpu().double()
            for order, row in zip(orders[start:], logits, strict=False):
                found.append(row[tokens[: len(order.choices)]].softmax(dim=-1))
        return found

    def _batches(self, encoded: Sequence[Encoded]) -> Iterator[tuple[int, Batch]]:
        """Batches of rows, each with the position of its first row."""
        for start in range(0, len(encoded), self.batch_size):
            part = encoded[start : start + self.batch_size]
            yield start, collate(part, pad_token_id=self.encoder.pad_token_id).to(self.device)


def check_family(tasks: Sequence[Task], family: Family) -> None:
    """Make sure that raw prompts are put only to models that they are written for.

    Raises:
        ConfigError: they are not written for this family.
    """
    if not family.published_prompts and any(task.form is not None for task in tasks):
        known = ", ".join(name for name, each in FAMILIES.items() if each.published_prompts)
        raise ConfigError(
            f"evaluation.protocol=official: the published prompts are there for models of type {known}, not for "
            f"{family.model_type!r}. Ask with evaluation.protocol=fixed."
        )


def average_over_orders(rows: Sequence[Tensor]) -> tuple[float, ...]:
    """Probability of each option, averaged over all cyclic orders, so that no option gains by its letter.

    Args:
        rows: k tensors of [k]; in row `shift`, entry `i` belongs to option `(i + shift) % k`.

    Returns:
        k probabilities, in the order of the options.
    """
    aligned = [row.roll(shift) for shift, row in enumerate(rows)]
    return tuple(torch.stack(aligned).mean(dim=0).tolist())


def _answer_fields(statistics: TokenStatistics) -> dict[str, Any]:
    return {
        "answer_log_probs": tuple(statistics.log_probs.tolist()),
        "answer_hits": tuple(statistics.hits.tolist()),
        "vocabulary_means": tuple(statistics.means.tolist()),
        "vocabulary_deviations": tuple(statistics.deviations.tolist()),
    }


def _first_token_only(encoded: Encoded) -> Encoded:
    """Supervise the first answer token alone: all that a letter takes."""
    labels = torch.full_like(encoded.labels, IGNORE)
    first = int((encoded.labels != IGNORE).nonzero()[0])
    labels[first] = encoded.labels[first]
    return replace(encoded, labels=labels)


def predict_task(asker: Asker, task: Task, run: Run, *, model: str, settings: Mapping[str, Any]) -> int:
    """Answer the questions of a task that are not answered yet, and append the answers to its file.

    Args:
        asker: the model.
        task: the questions.
        run: where `predictions/<task>.jsonl` lies.
        model: fingerprint of the model; answers of another model in the file are dropped.
        settings: what decides the answers besides; stored with each and part of its key.

    Returns:
        The number of questions that had been answered before.
    """
    keys = {example.id: prediction_key(model, task, example, settings) for example in task.examples}
    path = run.predictions(task.name)
    # Answers to questions that are not asked now (evaluation.limit) stay; stale ones and a line cut off by a kill go.
    kept = [record for record in read_json_lines(path) if keys.get(record["id"], record["key"]) == record["key"]]
    write_json_lines(path, kept)
    done = {record["id"] for record in kept} & keys.keys()
    # Alike lengths together: less padding.
    open_ones = sorted((e for e in task.examples if e.id not in done), key=lambda example: len(example.question))
    group = asker.batch_size * GROUP_BATCHES
    bar = progress(desc=task.name, unit="question", total=len(task.examples), initial=len(done))
    with bar:
        for start in range(0, len(open_ones), group):
            for prediction in asker.predictions(open_ones[start : start + group], task):
                complete = replace(prediction, settings=dict(settings), key=keys[prediction.id])
                append_json_line(path, complete.to_json())
                bar.update()
    return len(done)


GROUP_BATCHES = 4
"""Batches between two writes: a killed evaluation loses at most so many."""
