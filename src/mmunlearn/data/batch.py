"""From examples to tensors: which tokens the model sees and which of them are supervised.

Legend: B sequences, T tokens, N supervised tokens, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmunlearn.data.example import Example
from mmunlearn.data.processing import CROSS_ATTENTION_MASK, Processing, image_tokens, is_per_token
from mmunlearn.data.rendering import PROBE, conversation, render, render_prompt
from mmunlearn.errors import DataError

IGNORE = -100
"""The label of a token that is not supervised, as in torch's cross-entropy."""
CACHE_BYTES = 1 << 30
RECENT_PROMPTS = 4096
"""Prompts whose text and tokens are kept at hand: a question is asked in several ways."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the inputs of a batch hold its sequences, if not row by row: what sequences begin with alike is there once.

    Legend: P packs, T tokens of the longest, N supervised tokens, row by row.
    """

    wanted: Tensor
    """[P, T], bool: the positions whose logits predict a supervised token."""
    lines: Tensor
    """[N], which of the wanted positions, in the order of packs, predicts each."""
    shown: tuple[str, ...]
    """Ids of the examples whose pictures the inputs hold, in their order."""

    def to(self, device: torch.device) -> "Packing":
        """The same on another device."""
        return replace(self, wanted=self.wanted.to(device), lines=self.lines.to(device))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B sequences, ready for the model."""

    inputs: dict[str, Any]
    """Exactly what `model(**inputs)` takes. A method never picks keys from it: that is how images get lost."""
    labels: Tensor
    """[B, T], `IGNORE` except on supervised tokens."""
    ids: tuple[str, ...]
    """B example ids."""
    step_tokens: float
    """Supervised tokens in the whole optimizer step: all micro-batches, all ranks."""
    step_sequences: float
    """Sequences in the whole optimizer step."""
    packing: Packing | None = None
    """None: one row of the inputs a sequence."""

    @property
    def num_tokens(self) -> int:
        """Supervised tokens of this batch alone."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.inputs.items()}
        packing = self.packing and self.packing.to(device)
        return replace(self, inputs=inputs, labels=self.labels.to(device), packing=packing)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one forward and backward of a method sees: one side may be absent."""

    forget: Batch | None
    retain: Batch | None

    def sides(self) -> tuple[Batch, ...]:
        """The batches that are there."""
        return tuple(batch for batch in (self.forget, self.retain) if batch is not None)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One example as tensors; T is its own length."""

    id: str
    inputs: dict[str, Tensor]
    """As the processor returns them for a batch of one."""
    labels: Tensor
    """[T]"""

    @property
    def num_bytes(self) -> int:
        """Memory taken by the tensors."""
        return sum(value.numel() * value.element_size() for value in (*self.inputs.values(), self.labels))


def end_token(processor: Any) -> int:
    """The token that ends an answer: the special one that the chat template writes behind it, else the tokenizer's end token.

    They differ, for instance, in Gemma 3, whose turns end with `<end_of_turn>` and whose end token is `<eos>`.
    """
    whole = render(processor, conversation(PROBE, has_image=False, answer=PROBE))
    behind = processor.tokenizer(whole.rpartition(PROBE)[2].strip(), add_special_tokens=False)["input_ids"]
    tokenizer = processor.tokenizer
    return int(behind[0] if behind and behind[0] in special_tokens(processor) else tokenizer.eos_token_id)


def special_tokens(processor: Any) -> set[int]:
    """Ids of all tokens that are no text: marks of turns, padding, whatever stands for an image."""
    added = {index for index, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    return added | {*processor.tokenizer.all_special_ids, *image_tokens(processor)}


class Encoder:
    """Turns examples into token ids, pixels and labels by the prefix method, and remembers them.

    The prompt is rendered and tokenised on its own and must be a prefix of the full text's ids; what follows, up to and
    including the first end token, is the answer. Where the template writes no end token, one is appended.
    """

    def __init__(self, processor: Any, *, max_length: int, answer_only: bool = True, cache_bytes: int = CACHE_BYTES) -> None:
        """Prepare an encoder.

        Args:
            processor: a transformers processor with tokenizer, image processor and chat template.
            max_length: the longest sequence the model allows, in tokens; a longer one is an error, never truncated.
            answer_only: supervise the answer alone; otherwise the question too, but never image or padding tokens.
            cache_bytes: how much encoded data to keep in memory; beyond it the oldest is encoded again when needed. Besides,
                up to `processing.RECENT_BYTES` of processed pictures are kept.
        """
        self.processor = processor
        self._processing = Processing(processor)
        self.max_length = max_length
        self.answer_only = answer_only
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[Any, ...], Encoded] = OrderedDict()
        self._used = 0
        self._texts: OrderedDict[Any, str] = OrderedDict()
        self._prompts: OrderedDict[Any, Tensor] = OrderedDict()
        self.end_token_id = end_token(processor)
        self.pad_token_id = int(processor.tokenizer.pad_token_id or 0)
        self._special = torch.tensor(sorted(special_tokens(processor)))

    def __call__(self, example: Example) -> Encoded:
        """Encode one example with its answer.

        Raises:
            DataError: no answer, prompt not a prefix, or longer than the model allows; names the example.
        """
        image = example.image.key if example.image is not None else None
        key = (example.id, example.question, example.answer, image, example.verbatim, *example.shown_first())
        if key in self._cache:
            return self._cache[key]
        encoded = self._encode(example)
        self._cache[key] = encoded
        self._used += encoded.num_bytes
        while self._used > self.cache_bytes:
            self._used -= self._cache.popitem(last=False)[1].num_bytes
        return encoded

    def prompt(self, example: Example) -> Encoded:
        """Encode the question alone, as generation needs it; nothing is supervised.

        Raises:
            DataError: longer than the model allows.
        """
        inputs = self._tensors(self.text(example), example)
        self._check_length(example, inputs)
        return Encoded(id=example.id, inputs=inputs, labels=torch.full_like(inputs["input_ids"][0], IGNORE))

    def text(self, example: Example) -> str:
        """The prompt as it is given to the model, image placeholders unexpanded."""
        if example.verbatim:
            return example.question
        has_image = example.image is not None
        key = example.question, has_image, *example.shown_first()
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = render_prompt(self.processor, example.question, has_image=has_image, shots=example.shots)
            if len(self._texts) > RECENT_PROMPTS:
                self._texts.popitem(last=False)
        return text

    def first_tokens(self, answers: Sequence[str], asked: Example) -> list[int]:
        """The first token of each answer, as it stands behind the prompt of an example."""
        encoded = [self._encode(replace(asked, id=f"{asked.id}, answered {answer!r}", answer=answer)) for answer in answers]
        return [int(item.labels[item.labels != IGNORE][0]) for item in encoded]

    def _encode(self, example: Example) -> Encoded:
        if not example.answer.strip():
            raise DataError(f"{example.id}: the answer is empty, so there is nothing to learn or forget. Remove the row.")
        prompt, full = self._prompt_and_whole(example)
        inputs = self._tensors(full, example)
        prompt_ids = self._prompt_ids(prompt, example)
        ids = inputs["input_ids"][0]
        if len(prompt_ids) >= len(ids) or not torch.equal(ids[: len(prompt_ids)], prompt_ids):
            raise DataError(
                f"{example.id}: the tokens of the prompt are not a prefix of those of prompt and answer, so the answer cannot "
                "be located. The chat template must write the same text before the answer in both cases; mend "
                "chat_template.jinja of model.processor."
            )
        inputs, answer_end = self._end_answer(inputs, len(prompt_ids))
        self._check_length(example, inputs)
        return Encoded(id=example.id, inputs=inputs, labels=self._labels(inputs, len(prompt_ids), answer_end))

    def _prompt_ids(self, prompt: str, example: Example) -> Tensor:
        """The tokens of a prompt, [T]."""
        key = prompt, *(image.key for image in example.images())
        ids = self._prompts.get(key)
        if ids is None:
            ids = self._prompts[key] = self._tensors(prompt, example)["input_ids"][0]
            if len(self._prompts) > RECENT_PROMPTS:
                self._prompts.popitem(last=False)
        return ids

    def _prompt_and_whole(self, example: Example) -> tuple[str, str]:
        """The text before the answer, and that with the answer."""
        if example.verbatim:
            prompt = example.question.rstrip()  # a space at its end would be a token of its own, no prefix of " answer"
            return prompt, f"{prompt} {example.answer}"
        turns = conversation(example.question, has_image=example.image is not None, answer=example.answer, shots=example.shots)
        # LLaVA's template on the hub writes a space behind the answer, which would be learned as part of it.
        return self.text(example), render(self.processor, turns).rstrip()

    def _check_length(self, example: Example, inputs: dict[str, Tensor]) -> None:
        length = inputs["input_ids"].shape[1]
        if length > self.max_length and example.shots:
            raise DataError(
                f"{example.id}: {length} tokens with the {len(example.shots)} solved questions before it, but the model allows "
                f"{self.max_length}. Nothing is truncated, since that would cut image tokens: ask with "
                "evaluation.shots=zero_shot or use a model of longer context."
            )
        if length > self.max_length:
            raise DataError(
                f"{example.id}: {length} tokens, but the model allows {self.max_length}. Nothing is truncated, since that "
                "would cut image tokens: shorten the text or use a model of longer context."
            )

    def _tensors(self, text: str, example: Example) -> dict[str, Tensor]:
        """What the processor returns for one text and its images."""
        images = example.images()
        placeholder = self._processing.placeholder
        if text.count(placeholder) != len(images):
            raise DataError(
                f"{example.id}: {text.count(placeholder)} image placeholders for {len(images)} images. Is {placeholder!r} part "
                "of a question (take it out: it is put before the question), or does chat_template.jinja of model.processor "
                "leave out the images of earlier turns?"
            )
        return self._processing(text, images)

    def _end_answer(self, inputs: dict[str, Tensor], start: int) -> tuple[dict[str, Tensor], int]:
        """Cut behind the answer's first end token (a template may write a newline there), or append one."""
        ids = inputs["input_ids"][0]
        ends = (ids[start:] == self.end_token_id).nonzero()
        if len(ends):
            stop = start + int(ends[0]) + 1
            cut = {key: value[:, :stop] for key, value in inputs.items() if is_per_token(key, value, len(ids))}
            return inputs | cut, stop
        # Behind the answer, a token is attended to, is text and sees the image just as the one before it.
        extended = {
            key: torch.cat([value, value[:, -1:]], dim=1) if is_per_token(key, value, len(ids)) else value
            for key, value in inputs.items()
        }
        extended["input_ids"][0, -1] = self.end_token_id
        return extended, len(ids) + 1

    def _labels(self, inputs: dict[str, Tensor], start: int, stop: int) -> Tensor:
        ids = inputs["input_ids"][0]
        labels = torch.full_like(ids, IGNORE)
        if not self.answer_only:
            labels = torch.where(torch.isin(ids, self._special), IGNORE, ids)
            labels[0] = IGNORE  # nothing predicts the first token
        labels[start:stop] = ids[start:stop]
        return labels


def collate(encoded: Sequence[Encoded], *, pad_token_id: int, left: bool = False) -> Batch:
    """Pad to the longest sequence and stack.

    What is there once a token is padded with 0 (`input_ids` with the padding token); what is there once an image is joined in
    the order of the rows, with zeros where one image has fewer tiles than another. A model that looks at the image by
    cross-attention has one image slot a row, which stays empty (0) for rows without an image.

    Args:
        encoded: B examples.
        pad_token_id: fills `input_ids`; hidden by the attention mask.
        left: pad on the left, as generation needs it; training and likelihoods pad on the right.

    Returns:
        A batch whose step totals are its own.
    """
    longest = max(len(item.labels) for item in encoded)
    keys = dict.fromkeys(key for item in encoded for key in item.inputs)
    inputs: dict[str, Any] = {}
    for key in keys:
        rows = [item.inputs[key] for item in encoded if key in item.inputs]
        lengths = [len(item.labels) for item in encoded if key in item.inputs]
        per_token = all(is_per_token(key, row, length) for row, length in zip(rows, lengths, strict=True))
        if CROSS_ATTENTION_MASK in keys:
            like = rows[0]
            lengths = [len(item.labels) for item in encoded]
            shapes = [(1, length, *like.shape[2:]) if per_token else (1, *like.shape[1:]) for length in lengths]
            rows = [item.inputs.get(key, like.new_zeros(shape)) for item, shape in zip(encoded, shapes, strict=True)]
        if per_token:
            fill = pad_token_id if key == "input_ids" else 0
            rows = [_pad_to(row, longest, fill, dim=1, left=left) for row in rows]
        inputs[key] = _joined(rows)
    labels = torch.stack([_pad_to(item.labels, longest, IGNORE, dim=0, left=left) for item in encoded])
    tokens = int((labels != IGNORE).sum())
    return Batch(
        inputs=inputs,
        labels=labels,
        ids=tuple(item.id for item in encoded),
        step_tokens=float(tokens),
        step_sequences=float(len(encoded)),
    )


def _pad_to(value: Tensor, length: int, fill: int, *, dim: int, left: bool = False) -> Tensor:
    missing = length - value.shape[dim]
    before = (missing, 0) if left else (0, missing)
    return pad(value, (0, 0) * (value.dim() - 1 - dim) + before, value=fill) if missing else value


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """Join along the first dimension; the others are filled up with zeros to the largest."""
    for dim in range(1, rows[0].dim()):
        largest = max(row.shape[dim] for row in rows)
        rows = [_pad_to(row, largest, 0, dim=dim) for row in rows]
    return torch.cat(list(rows))
