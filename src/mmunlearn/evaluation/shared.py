"""Within one run the same request is answered once, whichever tasks and ways of asking it belongs to."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """Answers by what decides them.

    They are kept until the run ends, so they must be small and lie in the CPU's memory: a reply, or four numbers a token.
    30,000 of them take some tens of megabytes.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[Hashable, Answer] = {}

    def each(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Iterable[Answer]]) -> list[Answer]:
        """The answer of each request.

        Args:
            keys: of each request, all that decides its answer; equal keys have equal answers.
            compute: from the positions of unknown requests, each key once, to their answers in that order; it is not called
                if there are none.
        """
        new = self.unknown(keys)
        if new:
            self.learn([keys[position] for position in new], compute(new))
        return [self._known[key] for key in keys]

    def unknown(self, keys: Sequence[Hashable]) -> list[int]:
        """The positions of requests that have no answer yet, each key once."""
        missing: dict[Hashable, int] = {}
        for position, key in enumerate(keys):
            if key not in self._known:
                missing.setdefault(key, position)
        return list(missing.values())

    def learn(self, keys: Sequence[Hashable], answers: Iterable[Answer]) -> None:
        """Keep answers, one for each key."""
        self._known.update(zip(keys, answers, strict=True))
