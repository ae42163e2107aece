"""The shape of what `mmunlearn.metrics.cards` says of each metric."""

import math
from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a metric is, where it lies, and what is good."""

    name: str
    """As in results files."""
    title: str
    """For headings."""
    meaning: str
    """A sentence or two."""
    higher_means: str
    ideal_erase: str
    """What the goal `erase` wants of it: for metrics of a task, on questions about the forget people."""
    ideal_visual_only: str
    """The same for the goal `visual_only`: the recognition goes, the facts told in text stay."""
    formula: str
    source: str
    range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest possible value; may be infinite."""
    is_cut: bool = False
    """Whether the largest value is a cut of ours and no natural end, so that it says nothing about how far a mean may lie."""
    needs_gold: bool = False
    """Whether there is no number at all without a gold model."""
    needs_holdout: bool = False
    """Whether there is no number at all without questions about people whom nobody was trained on."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The natural range, for `statistics.clustered_interval`; None for a share between 0 and 1, which needs none."""
        if self.range == (0.0, 1.0):
            return None
        return self.range[0], math.inf if self.is_cut else self.range[1]


class Ideals(TypedDict):
    """The two fields of a card that are often the same."""

    ideal_erase: str
    ideal_visual_only: str


def both(ideal: str) -> Ideals:
    """An ideal that does not depend on the goal; for `visual_only`, gold on text questions is the model `gold_text`."""
    return {"ideal_erase": ideal, "ideal_visual_only": ideal}
