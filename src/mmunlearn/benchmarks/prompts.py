"""How a question becomes the text that a model reads: the published evaluator's formats, in one place.

Training data that teaches these formats and the evaluation that uses them both compose their texts here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmunlearn.data.example import Shot

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Options are lettered in this order."""

BLANK = "[Blank]"
"""What stands for the gap in a cloze question."""

CHOICE_INSTRUCTION = "Just give ONE letter representing the answer directly."
CLOZE_INSTRUCTION = "Please **ONLY** provide the correct answer that should replace the [Blank]."
IMAGE_GENERATION_INSTRUCTION = "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."
TEXT_GENERATION_INSTRUCTION = "Answer the question based on your trained knowledge in one sentence in ENGLISH."

RECOGNITION_QUESTION = "What is the name of the person in the image?"
"""Asked where only the right name is given, as MMUnlearner's script for CLEAR does."""

NAME_SENTENCE = "The name of the person on the image is "
"""What CLEAR's own script lets the model go on with; the space at its end is published too."""

CAPTION_QUESTIONS = (
    "What can you see in this picture?",
    "Tell me about the content of this image",
    "Can you give a description of the image?",
    "What is depicted in the image?",
    "Explain what you observe in the picture.",
    "Describe the image in detail.",
    "What is the main subject of this image?",
    "Can you describe the scene or objects in the image?",
    "What is happening in this image?",
)
"""One is asked where only a caption is given, in training and evaluation; those of CLEAR's and MMUnlearner's scripts."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """How options are listed, where a published script does it in a way of its own."""

    mark: str = ": "
    """Between a letter and its option."""
    after: str = ""
    """Behind the last option."""


LISTING = Listing()
"""Ours, which is MLLMU-Bench's."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """Text written around questions instead of a chat template, as a published script does."""

    before: str
    """In front of the question; holds the image placeholder where there is a picture."""
    after: str
    """Behind question and instruction; the model goes on from here."""
    shot_before: str = ""
    """In front of each solved question."""
    shot_after: str = ""
    """Between a solved question and its answer."""
    shots_instructed: bool = False
    """Whether solved questions carry the instruction too."""

    def write(self, question: str, shots: Sequence[Shot]) -> str:
        """The whole prompt.

        Args:
            question: with options and instruction.
            shots: with options, instruction and answers as they are to be shown.
        """
        solved = [f"{self.shot_before}{shot.question}{self.shot_after}{shot.answer}\n" for shot in shots]
        return "".join([*solved, self.before, question, self.after])


def with_instruction(question: str, instruction: str) -> str:
    """The question with the instruction on a line of its own; the bare question where there is no instruction."""
    return f"{question}\n{instruction}" if instruction else question


def listed_choice(question: str, options: Sequence[str], instruction: str, listing: Listing = LISTING) -> str:
    r"""The question, then one line `A: …` for each option, then the instruction.

    Args:
        question: the plain question.
        options: their order decides the letters.
        instruction: what kind of reply is wanted; may be empty.
        listing: what stands behind letters and list.

    Raises:
        ValueError: more options than letters.
    """
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options, but only {len(LETTERS)} letters.")
    lines = [question, *(f"{letter}{listing.mark}{option}" for letter, option in zip(LETTERS, options, strict=False))]
    return with_instruction("\n".join(lines) + listing.after, instruction)


def mark_blank(question: str) -> str:
    """Write a gap, which the data sets draw as two or more underscores, as `[Blank]`.

    A longer line of underscores is one gap: replacing every pair would ask for several answers.
    """
    return re.sub(r"_{2,}", BLANK, question)
