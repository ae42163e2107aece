import pytest

from mmunlearn.benchmarks import prompts


def test_listed_choice_is_the_published_layout():
    text = prompts.listed_choice("Who?", ["Ann", "Bob", "Cy", "Di"], prompts.CHOICE_INSTRUCTION)
    assert text == "Who?\nA: Ann\nB: Bob\nC: Cy\nD: Di\nJust give ONE letter representing the answer directly."


def test_no_instruction_adds_no_line():
    assert prompts.with_instruction("Who?", "") == "Who?"
    assert prompts.listed_choice("Who?", ["Ann"], "") == "Who?\nA: Ann"


def test_a_long_blank_is_one_blank():
    # `replace("__", "[Blank]")`, as published, makes two of four underscores.
    assert prompts.mark_blank("She is a ____ in __.") == "She is a [Blank] in [Blank]."
    assert prompts.mark_blank("snake_case") == "snake_case"


def test_too_many_options():
    with pytest.raises(ValueError, match="27 options"):
        prompts.listed_choice("Q", ["x"] * 27, "")
