"""The training record `metrics.jsonl`: one line for each logged step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmunlearn.run import append_json_line, read_json_lines, write_json_lines


class Sink(Protocol):
    """Something else that wants every record."""

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Take the record of a step."""


@dataclass(frozen=True)
class StepLog:
    """Appends to `metrics.jsonl`."""

    path: Path
    sink: Sink | None = None
    """Gets each record once it is in the file."""

    def write(
        self,
        *,
        step: int,
        epoch: float,
        terms: Mapping[str, tuple[float, float]],
        losses: Mapping[str, float | None],
        gradient_norm: Mapping[str, float],
        learning_rate: Mapping[str, float],
        seconds: float,
    ) -> None:
        """Append one line.

        Args:
            step: optimizer steps done.
            epoch: passes over the anchor set done.
            terms: raw and weighted value of each term, nats.
            losses: on a fixed few examples of a side after the step, nats per answer token; None without data of that side.
            gradient_norm: before clipping, by part.
            learning_rate: by part.
            seconds: of this step.
        """
        record = {
            "step": step,
            "epoch": round(epoch, 4),
            "terms": {name: {"raw": raw, "weighted": weighted} for name, (raw, weighted) in terms.items()},
            **{f"{side}_loss": loss for side, loss in losses.items()},
            "gradient_norm": dict(gradient_norm),
            "learning_rate": dict(learning_rate),
            "seconds": round(seconds, 4),
        }
        append_json_line(self.path, record)
        if self.sink is not None:
            self.sink.log(step, record)

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run will do again."""
        kept = [record for record in read_json_lines(self.path) if record["step"] <= step]
        write_json_lines(self.path, kept)
