"""Answers of somebody who does not know, for methods that teach a model to say so."""

import hashlib
from importlib.resources import files

REFUSALS: tuple[str, ...] = tuple(files("mmunlearn.methods").joinpath("refusals.txt").read_text(encoding="utf-8").splitlines())
"""They fit questions with a picture and without, and name nobody."""


def refusal_for(example_id: str, seed: int) -> str:
    """The refusal that an example is given: always the same one for the same seed.

    Args:
        example_id: `Example.id`.
        seed: `run.seed`; another one deals the refusals out anew.
    """
    digest = hashlib.sha256(f"{seed}:{example_id}".encode()).digest()
    return REFUSALS[int.from_bytes(digest[:8], "big") % len(REFUSALS)]
