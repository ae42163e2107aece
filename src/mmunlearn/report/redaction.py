"""Takes names out of texts."""

import re
from collections.abc import Mapping
from unicodedata import normalize


def redact(text: str, names: Mapping[str, str]) -> str:
    """Replace persons by their labels in a text that may name them, such as a configuration.

    Whole words only, whatever their case, the form of their accents and what stands between them (blanks, `_` or `-`, as in
    names of folders). Identifiers of digits alone stay: they identify nobody to a reader, and replacing them would garble
    every number of the text.

    Args:
        text: the text.
        names: label by person, see `pseudonyms`.
    """
    words = sorted((name for name in names if not name.isdigit()), key=len, reverse=True)
    if not words:
        return text
    spelled = ["[\\s_-]+".join(map(re.escape, _parts(word))) for word in words if _parts(word)]
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(spelled)})(?![^\W_])", re.IGNORECASE)
    folded = {tuple(_parts(name)): label for name, label in names.items()}
    return pattern.sub(lambda match: folded.get(tuple(_parts(match.group())), "a person"), normalize("NFC", text))


def _parts(name: str) -> list[str]:
    """The words of a name, as they are compared."""
    return re.split(r"[\s_-]+", normalize("NFC", name).strip().lower())
