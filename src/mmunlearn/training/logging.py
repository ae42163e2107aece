"""The training record `metrics.jsonl`: one line for each logged step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmunlearn.run import append_json_line, read_json_lines, write_json_lines


@dataclass(frozen=True)
class StepLog:
    """Appends to `metrics.jsonl`."""

    path: Path

    def write(
        self,
        *,
        step: int,
        epoch: float,
        terms: Mapping[str, tuple[float, float]],
        retain_loss: float | None,
        gradient_norm: Mapping[str, float],
        learning_rate: Mapping[str, float],
        seconds: float,
    ) -> None:
        """Append one line.

        Args:
            step: optimizer steps done.
            epoch: passes over the anchor set done.
            terms: raw and weighted value of each term, nats.
            retain_loss: on a fixed few retain examples after the step, nats per answer token; None without retain data.
            gradient_norm: before clipping, by part.
            learning_rate: by part.
            seconds: of this step.
        """
        append_json_line(
            self.path,
            {
                "step": step,
                "epoch": round(epoch, 4),
                "terms": {name: {"raw": raw, "weighted": weighted} for name, (raw, weighted) in terms.items()},
                "retain_loss": retain_loss,
                "gradient_norm": dict(gradient_norm),
                "learning_rate": dict(learning_rate),
                "seconds": round(seconds, 4),
            },
        )

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run will do again."""
        kept = [record for record in read_json_lines(self.path) if record["step"] <= step]
        write_json_lines(self.path, kept)
