"""Which families a test goes through: three each time, all of them in the thorough part."""

import pytest

from mmunlearn.models.families import FAMILIES

QUICK = ("llava", "qwen2_vl", "mllama")
"""Their pictures are tokens in a row, tokens in rows and columns, and no tokens at all."""


def each_family(*left_out: str) -> list:
    """Values for `pytest.mark.parametrize` or a fixture."""
    names = [name for name in FAMILIES if name not in left_out]
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.thorough) for name in names]
