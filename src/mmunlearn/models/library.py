"""Finding a model that was made earlier by what went into it, instead of by where it lies."""

from collections.abc import Iterable
from pathlib import Path

from mmunlearn.config_enums import Role
from mmunlearn.errors import ConfigError
from mmunlearn.models.load import read_card
from mmunlearn.run import CARD_FILE

OUTPUTS = Path("outputs")


def find_model(role: Role, *, data: str, base: str | None, beside: Iterable[Path]) -> Path:
    """The newest finished model of a role that was trained on given examples.

    Args:
        role: for instance gold.
        data: fingerprint of the training examples, see `examples_fingerprint`.
        base: fingerprint of the weights it must have started from; None: any.
        beside: folders of runs that are searched besides `outputs`.

    Raises:
        ConfigError: there is none, or there are several from different base models and it is not known which is right.
    """
    roots = {OUTPUTS.resolve(), *(each.resolve() for each in beside)}
    found: dict[Path, str | None] = {}
    for folder in sorted({file.parent for root in roots if root.is_dir() for file in _cards(root)}):
        try:
            said = read_card(str(folder))
        except ConfigError:
            continue  # damaged: whatever it is, it cannot be shown to be the right one
        if said.get("role") == role and said.get("data") == data and base in (None, said.get("base")):
            found[folder] = said.get("base")
    if len(set(found.values())) > 1:
        raise ConfigError(
            f"Several {role} models were trained on these examples, from different base models ({', '.join(map(str, found))}), "
            "and the model that is to forget does not say from which one it comes. Name the folder: trainer.reference=FOLDER."
        )
    if not found:
        searched = ", ".join(sorted(map(str, roots)))
        raise ConfigError(
            f"No {role} model that was trained on these examples is among the runs in {searched}. Make one from the same base "
            f"model and with the same data settings (mmunlearn finetune data.split=retain), or name its folder: "
            "trainer.reference=FOLDER."
        )
    return max(found, key=lambda folder: (folder / CARD_FILE).stat().st_mtime)


def _cards(root: Path) -> Iterable[Path]:
    """Cards at most three folders down, where runs put them (`RUN/model/`, also in a folder of runs)."""
    return (file for depth in ("*", "*/*", "*/*/*") for file in root.glob(f"{depth}/{CARD_FILE}"))
