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
"""Asked where only the right name is given. CLEAR's own scripts let the model finish a sentence instead."""

CAPTION_QUESTIONS = (
    "Describe the person in the image.",
    "Who can be seen here, and what is known about this person?",
    "Write a caption for this portrait.",
    "What does this image show?",
    "Say in your own words who is shown here.",
    "Give a short description of this image.",
    "Tell me about the person in this portrait.",
    "What would you write below this image?",
    "Introduce the person in the image.",
)
"""Asked where only a caption is given; nine, as in CLEAR's scripts, in words of our own."""


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


def listed_choice(question: str, options: Sequence[str], instruction: str) -> str:
    r"""The question, then one line `A: …` for each option, then the instruction.

    Args:
        question: the plain question.
        options: their order decides the letters.
        instruction: what kind of reply is wanted; may be empty.

    Raises:
        ValueError: more options than letters.
    """
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options, but only {len(LETTERS)} letters.")
    lines = [question, *(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))]
    return with_instruction("\n".join(lines), instruction)


def mark_blank(question: str) -> str:
    """Write a gap, which the data sets draw as two or more underscores, as `[Blank]`.

    A longer line of underscores is one gap: replacing every pair would ask for several answers.
    """
    return re.sub(r"_{2,}", BLANK, question)
