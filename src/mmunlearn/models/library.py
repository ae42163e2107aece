"""Finding a model that was made earlier by what went into it, instead of by where it lies."""

import json
from collections.abc import Iterable
from pathlib import Path

from mmunlearn.config import Role
from mmunlearn.errors import ConfigError
from mmunlearn.models.load import CARD_FILE

OUTPUTS = Path("outputs")


def find_model(role: Role, *, data: str, base: str | None, beside: Iterable[Path]) -> Path:
    """The newest finished model of a role that was trained on given examples.

    Args:
        role: for instance gold.
        data: fingerprint of the training examples, see `examples_fingerprint`.
        base: fingerprint of the weights it must have started from; None: any.
        beside: folders of runs that are searched besides `outputs`.

    Raises:
        ConfigError: there is none.
    """
    roots = {OUTPUTS.resolve(), *(each.resolve() for each in beside)}
    found: list[Path] = []
    for card in sorted({file for root in roots if root.is_dir() for file in _cards(root)}):
        said = json.loads(card.read_text(encoding="utf-8"))
        if said.get("role") == role and said.get("data") == data and base in (None, said.get("base")):
            found.append(card)
    if not found:
        searched = ", ".join(sorted(map(str, roots)))
        raise ConfigError(
            f"No {role} model that was trained on these examples is among the runs in {searched}. Make one from the same base "
            f"model and with the same data settings (mmunlearn finetune data.split=retain), or name its folder: "
            "trainer.reference=FOLDER."
        )
    return max(found, key=lambda card: card.stat().st_mtime).parent


def _cards(root: Path) -> Iterable[Path]:
    """Cards at most three folders down, where runs put them (`RUN/model/`, also in a folder of runs)."""
    return (file for depth in ("*", "*/*", "*/*/*") for file in root.glob(f"{depth}/{CARD_FILE}"))
