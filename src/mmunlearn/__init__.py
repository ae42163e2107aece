"""mmunlearn: make vision-language models forget people, and show what they forgot and what they kept.

From Python::

    import mmunlearn
    model = mmunlearn.unlearn(model, processor, forget=forget, retain=retain, method=GradDiff(retain_weight=2.0))
    results = mmunlearn.evaluate(model, processor, benchmark)
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["EvaluationSettings", "Settings", "evaluate", "unlearn"]


def __getattr__(name: str) -> Any:
    """Load torch only when something that needs it is used: `mmunlearn --help` and `score` do without."""
    if name in __all__:
        return getattr(importlib.import_module("mmunlearn.api"), name)
    raise AttributeError(f"module 'mmunlearn' has no attribute {name!r}")
