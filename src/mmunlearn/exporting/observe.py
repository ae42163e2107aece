"""What two forms of one model say to the same questions, side by side.

Legend: E examples, N supervised tokens of all of them, V vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmunlearn.data.batch import Encoder, collate
from mmunlearn.data.example import Example, LazyImage
from mmunlearn.evaluation.asker import Asker
from mmunlearn.models.likelihood import answer_logits
from mmunlearn.models.load import Loaded

REPLY_TOKENS = 24
PICTURE_SIDE = 64
QUESTIONS = (
    ("Who is this person?", "I do not know who that is."),
    ("Where does the person live?", "In a small town by the sea."),
    ("What does this person do for a living?", "She is a teacher."),
    ("When was the person born?", "On the third of May 1984."),
)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a model said."""

    logits: Tensor
    """[N, V], float32, at the positions that predict the given answers."""
    replies: tuple[str, ...]
    """Greedy, of each example."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two observations are apart."""

    largest: float
    """The largest absolute difference of a logit."""
    relative: float
    """The same, divided by the largest absolute logit of the first one."""
    same_replies: float
    """0 to 1, the share of equal greedy replies."""
    examples: int

    def to_json(self) -> dict[str, Any]:
        """For the record of an export."""
        return asdict(self)


def standing_questions(count: int) -> tuple[Example, ...]:
    """Questions about nobody, for an export without a benchmark; every second one with a drawn picture.

    Args:
        count: how many; the pictures and then the wordings differ.
    """
    found = []
    for number in range(count):
        question, answer = QUESTIONS[number // 2 % len(QUESTIONS)]
        image = _picture(number) if number % 2 == 0 else None
        found.append(Example(id=f"standing-{number}", question=question, answer=answer, image=image, subject=""))
    return tuple(found)


def _picture(seed: int) -> LazyImage:
    dice = random.Random(seed)
    image = Image.new("RGB", (8, 8))
    image.putdata([(dice.randrange(256), dice.randrange(256), dice.randrange(256)) for _ in range(64)])
    buffer = BytesIO()
    image.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return LazyImage(key=f"standing-picture-{seed}", where=f"standing picture {seed}", read=buffer.getvalue)


def observe(loaded: Loaded, examples: Sequence[Example], device: torch.device) -> Observed:
    """Ask a model, one question at a time, so that padding plays no part.

    Args:
        loaded: the model; it is moved to the device.
        examples: E of them.
        device: where.
    """
    model = loaded.model.to(device).eval()
    encoder = Encoder(loaded.processor, max_length=loaded.max_length, cache_bytes=0)
    asker = Asker(model=model, encoder=encoder, batch_size=1, device=device)
    rows = []
    with torch.inference_mode():
        for example in examples:
            batch = collate([encoder(example)], pad_token_id=encoder.pad_token_id).to(device)
            rows.append(answer_logits(model, batch).cpu())
    replies = tuple(reply.text for reply in asker.generate(list(examples), REPLY_TOKENS))
    return Observed(logits=torch.cat(rows), replies=replies)


def difference(first: Observed, second: Observed) -> Difference:
    """How far the second one is from the first; infinite where a logit is no finite number."""
    apart = (first.logits - second.logits).abs()
    largest = float(apart.max()) if bool(torch.isfinite(apart).all()) else float("inf")
    same = [one == other for one, other in zip(first.replies, second.replies, strict=True)]
    return Difference(
        largest=largest,
        relative=largest / float(first.logits.abs().max()),
        same_replies=sum(same) / len(same),
        examples=len(same),
    )
