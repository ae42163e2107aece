"""The two records that everything else passes around: an `Example` goes in, a `Prediction` comes out. No torch here."""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageOps

from mmunlearn.errors import DataError
from mmunlearn.run import fingerprint

MAX_PIXELS = 2**26
"""Of a picture: 8192 x 8192. Decoded, it takes 256 MiB; models look at a hundredth of that."""

UNDECODABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for bytes that are not a whole picture."""

_ORIENTATION = 0x0112  # the Exif tag in which cameras say how a picture was held


class ImageRef(Protocol):
    """A picture that is decoded only when it is needed."""

    @property
    def key(self) -> str:
        """Identifies the content: equal keys mean equal pixels. Used by caches and fingerprints."""

    def open(self) -> Image.Image:
        """Decode to RGB.

        Raises:
            DataError: the bytes are missing or are not a picture; the message names file and row.
        """


@dataclass(frozen=True, kw_only=True)
class LazyImage:
    """An `ImageRef` over a function that reads the encoded bytes (PNG, JPEG, …)."""

    key: str
    where: str
    """File and row, for messages."""
    read: Callable[[], bytes] = field(repr=False, compare=False)

    def open(self) -> Image.Image:
        """Decode to RGB; see `ImageRef.open`.

        As in `datasets`, a picture stands upright however the camera was held. Transparency is dropped, and of an animation
        the first frame is shown.
        """
        try:
            with Image.open(io.BytesIO(self.read())) as image:
                check_picture(image)
                return _eight_bits(_upright(image)).convert("RGB")
        except UNDECODABLE as error:
            raise undecodable(self.where, error) from error


def check_picture(image: Image.Image) -> None:
    """Refuse what would fill the memory or lose its content, from the header alone.

    Raises:
        ValueError: too many pixels, or pixels of which it is not known how bright they are meant to be.
    """
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}: scale it down")
    if image.mode in ("I", "F"):  # Pillow clips these to white or black without a word
        kind = "whole" if image.mode == "I" else "floating-point"
        raise ValueError(f"its pixels are {kind} numbers of 32 bits: save it with 8")


def undecodable(where: str, error: Exception) -> DataError:
    """The error for a picture that `check_picture` or Pillow refused.

    Args:
        where: file and row.
        error: what was raised.
    """
    # Pillow names the address of the buffer in memory.
    reason = "not a picture" if "cannot identify" in str(error) else str(error).split("\n")[0]
    return DataError(
        f"{where}: the image cannot be decoded ({reason}). Restore the file from its source, convert it or remove the row."
    )


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same brightness in 8 bits; Pillow would clip 16 of them, which leaves a white picture."""
    return image.convert("I").point(lambda value: value * (1 / 257)) if image.mode.startswith("I;16") else image


def image_file(path: str | Path) -> LazyImage:
    """The picture in a file, for examples made by hand.

    Raises:
        DataError: there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: there is no such image file. Correct the path.")
    return LazyImage(key=hashlib.sha256(file.read_bytes()).hexdigest()[:16], where=str(file), read=file.read_bytes)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A solved question that stands before the one that is asked."""

    question: str
    answer: str
    image: ImageRef | None = None
    """None: text only."""
    choices: tuple[str, ...] = ()
    """As in `Example`."""
    subject: str = ""
    """Whom it is about."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question about one image (or about none), with the answer that the data set expects."""

    id: str
    """Stable and unique within a benchmark; keys every stored prediction and score."""
    question: str
    answer: str
    """For multiple choice: the text of the right option, one of `choices`."""
    image: ImageRef | None = None
    """None: text only."""
    choices: tuple[str, ...] = ()
    """All options in the order of the data set, the right one among them; empty where the answer is free."""
    paraphrase: str = ""
    """Of a free answer: the right answer in other words; empty: there is none."""
    perturbed: tuple[str, ...] = ()
    """Of a free answer: wrong answers that read like it. Never shown; their likelihoods are compared with the right one's."""
    subject: str = ""
    """The person: the unit of forgetting, of splits and of confidence intervals."""
    shots: tuple[Shot, ...] = ()
    """Solved questions that the model is shown first, in this order; belong to the prompt."""
    verbatim: bool = False
    """The question is the whole prompt, with an image placeholder for each picture of the shots and its own: no chat template
    is written around it, and only the pictures of the shots are still needed."""

    def compared(self) -> tuple[str, ...]:
        """The answers that the expected one is compared with: the wrong ones, then the paraphrase if there is one."""
        return (*self.perturbed, self.paraphrase) if self.paraphrase else self.perturbed

    def images(self) -> tuple[ImageRef, ...]:
        """All pictures of the prompt, in order."""
        shown = (*(shot.image for shot in self.shots), self.image)
        return tuple(image for image in shown if image is not None)

    def shown_first(self) -> list[tuple[str, str, tuple[str, ...], str]]:
        """What identifies the shots, for keys and fingerprints."""
        return [(s.question, s.answer, s.choices, s.image.key if s.image is not None else "") for s in self.shots]


def examples_fingerprint(examples: Iterable[Example]) -> str:
    """Identifies what a set of examples teaches, whatever its order."""
    return fingerprint(
        sorted(
            (e.id, e.question, e.answer, e.image.key if e.image else "", *([e.shown_first()] if e.shots else []))
            for e in examples
        )
    )


def drawn(examples: Sequence[Example], limit: int) -> tuple[Example, ...]:
    """So many examples, drawn by their ids alone and in their order; 0: all.

    The first ones would be about one person, every k-th one of a kind.
    """
    if not limit:
        return tuple(examples)
    chosen = sorted(range(len(examples)), key=lambda index: fingerprint(examples[index].id))[:limit]
    return tuple(examples[index] for index in sorted(chosen))


def people_fingerprint(examples: Iterable[Example]) -> str:
    """Identifies whom a set of examples is about, without naming anybody."""
    return fingerprint(sorted({example.subject for example in examples}))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Everything a model said about one example, kept so that metrics written later need no model.

    Lists named `answer_*` have one entry for each token of the expected answer (its end token included), under teacher
    forcing; for a multiple-choice example that answer is the text of the right option.
    """

    id: str
    prompt: str
    """The text given to the model, image placeholder unexpanded."""
    text: str
    """What the model generated (greedy); for multiple choice its reply to the prompt that lists the options."""
    answer_log_probs: tuple[float, ...] = ()
    """Nats."""
    answer_hits: tuple[bool, ...] = ()
    """Whether the token was the arg-max."""
    vocabulary_means: tuple[float, ...] = ()
    """Mean of log p over the vocabulary under p itself (Min-K++), at each answer position, nats."""
    vocabulary_deviations: tuple[float, ...] = ()
    """Standard deviation of log p under p itself, nats."""
    option_log_likelihoods: tuple[float, ...] = ()
    """Sum of token log-probabilities, in nats: of each option's text, asked without the list, in the order of `choices`; of a
    free answer those of `Example.compared()`, in that order."""
    option_tokens: tuple[int, ...] = ()
    """Number of tokens in each of those sums."""
    option_letter_probabilities: tuple[float, ...] = ()
    """Softmax over the listed letters, averaged over all cyclic orders of the options; in the order of `choices`."""
    smallest_gap: float | None = None
    """Over the tokens of the reply, the smallest difference between the best logit and the second best: where it is tiny,
    rounding chose. None: not kept, or not finite."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What decided the answer besides the model: protocol, decoding, dtype."""
    key: str = ""
    """Fingerprint of model, task version, example and settings."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` accepts; what is not finite, as a destroyed model gives it, becomes None."""
        return {
            name: [_finite(number) for number in value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Prediction":
        """The inverse of `to_json`; None becomes NaN."""
        values: dict[str, Any] = {
            name: tuple(math.nan if number is None else number for number in value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        return cls(**values)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


Metric = Callable[[Prediction, Example], float]
"""One number for one answered question; `math.nan` means that it could not be scored and is counted as such."""
