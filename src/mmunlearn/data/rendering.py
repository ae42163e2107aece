"""How a question, its picture and its answer become one text: by the processor's chat template, on no particular day."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from mmunlearn.data.example import Shot
from mmunlearn.errors import DataError

TODAY = datetime(2024, 7, 26)
FIXED_DATE = TODAY.strftime("%d %b %Y")
"""For templates that write a date: the one that Llama's own templates write where no clock is at hand."""
_CLOCK = re.compile(r"""strftime_now\s*\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")
PROBE = "zqxj"
"""A word that no template contains."""


def conversation(
    question: str, *, has_image: bool, answer: str | None = None, shots: Sequence[Shot] = ()
) -> list[dict[str, Any]]:
    """The question, and the answer if given, in the form that chat templates take; shots are turns before it."""
    earlier = [
        turn for shot in shots for turn in conversation(shot.question, has_image=shot.image is not None, answer=shot.answer)
    ]
    content: list[dict[str, str]] = [{"type": "image"}] if has_image else []
    turns = [*earlier, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def render_prompt(processor: Any, question: str, *, has_image: bool, shots: Sequence[Shot] = ()) -> str:
    """The text given to the model when it is asked, image placeholders unexpanded."""
    return render(processor, conversation(question, has_image=has_image, shots=shots), add_generation_prompt=True)


def render(processor: Any, turns: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
    """A conversation as one text, by the processor's chat template."""
    # Some templates write today's date, so that answers would change from day to day.
    fixed = {"date_string": FIXED_DATE} if "date_string" in str(processor.chat_template) else {}
    if "strftime_now" in str(processor.chat_template):
        fixed["chat_template"] = _without_clock(processor.chat_template)
    return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt, **fixed))


def _without_clock(template: str | dict[str, str]) -> str:
    """The template with the fixed date in the place of each call of the clock; templates take no functions from outside.

    Raises:
        DataError: the format of the date is worked out by the template itself.
    """
    text = template if isinstance(template, str) else template["default"]
    fixed = _CLOCK.sub(lambda call: repr(TODAY.strftime(call["format"])), text)
    if "strftime_now(" in "".join(fixed.split()):
        raise DataError(
            "The chat template writes today's date in a format of its own making, so that prompts would change from day to "
            "day. Write a date into chat_template.jinja of model.processor, in the place of strftime_now(...)."
        )
    return fixed


def date_written(processor: Any) -> str:
    """The date that prompts are written with, instead of today's; empty if the chat template writes none."""
    return FIXED_DATE if any(name in str(processor.chat_template) for name in ("date_string", "strftime_now")) else ""


def locates_answers(processor: Any) -> bool:
    """Whether the chat template writes the same text before an answer as it does to ask for one."""
    for has_image in (True, False):
        whole = render(processor, conversation(PROBE, has_image=has_image, answer=PROBE))
        prompt = render_prompt(processor, PROBE, has_image=has_image)
        if not whole.startswith(prompt) or PROBE not in whole[len(prompt) :]:
            return False
    return True
