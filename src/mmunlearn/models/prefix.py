"""Sequences that begin alike are computed once: a model reads a forest of tokens in place of a batch of rows.

The rows about one picture share the picture and, often, most of the question; the options of one question share all but
their own words. A `Pack` holds each token once that several rows have in common: the tokens of a row are a path through it,
a token attends to those before it on its paths and to nothing else, and its position is its place in its row. The model
computes the same function of each row as ever, because a token of a causal model depends on the tokens before it alone.

This holds for models whose language part is causal (`Family.shares_prefix`), and is done where attention takes a mask of four
dimensions (`can_share`).

Legend: P packs, T tokens of the longest, N wanted positions, V vocabulary, D dimensions of a position (`Family.row_positions`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn

from mmunlearn.data.batch import IGNORE, Encoded, collate
from mmunlearn.models.families import EAGER, SDPA, Family
from mmunlearn.models.generic import find_family

PER_TOKEN = {"input_ids", "attention_mask", "mm_token_type_ids"}
"""What a processor gives once a token; everything else belongs to pictures."""
SMALLEST_PACK = 256
"""Tokens that a pack may hold, however short its rows."""
ROWS_OF_A_PACK = 2
"""As many tokens as so many of the longest rows fill a pack: attention to branches that a token does not see is wasted."""
Places = npt.NDArray[np.int64]


def can_share(family: Family, config: Any) -> bool:
    """Whether a loaded model's rows can be read as a forest.

    Args:
        family: the model's.
        config: the model's configuration.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    return (
        family.shares_prefix
        and text._attn_implementation in (EAGER, SDPA)
        and getattr(text, "sliding_window", None) is None
        and rope.get("rope_type", "default") not in ("dynamic", "longrope")  # these look at the longest row of a batch
    )


Positions = Callable[[Encoded], Places]
"""Where the tokens of a sequence stand: [T], or [D, T]."""


def in_order(encoded: Encoded) -> Places:
    """One behind the other, from 0."""
    return np.arange(len(encoded.labels))


def positions_in(model: nn.Module) -> Positions:
    """Where the tokens of a sequence stand in a model; it may be wrapped in adapters."""
    found = find_family(model).row_positions
    if found is None:
        return in_order
    own: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return lambda encoded: found(own, encoded.inputs).numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One sequence, read as far as the last position whose next token is wanted."""

    encoded: Encoded
    pictures: tuple[str, ...]
    """Keys of its pictures, in order."""
    ids: Places
    """[T], its tokens."""
    wanted: Places
    """[N], its tokens, counted from 0, whose next token is wanted, in order."""
    positions: Places
    """[T] or [D, T], where its tokens stand."""

    @property
    def next_position(self) -> int:
        """Where a token behind the last one stands, in all dimensions."""
        return int(self.positions.max()) + 1

    @property
    def order(self) -> tuple[Any, ...]:
        """Rows that begin alike lie next to each other when sorted by this."""
        return self.pictures, self.ids.astype(">i8").tobytes()


def row_to_score(encoded: Encoded, pictures: tuple[str, ...], positions: Positions = in_order) -> Row:
    """A row of which the logits are wanted that predict its supervised tokens."""
    wanted = (encoded.labels[1:] != IGNORE).nonzero()[:, 0].numpy()  # the logits at t - 1 predict token t
    return _row(encoded, pictures, wanted, positions)


def row_to_continue(encoded: Encoded, pictures: tuple[str, ...], positions: Positions = in_order) -> Row:
    """A row of which the logits behind its last token are wanted."""
    return _row(encoded, pictures, np.array([len(encoded.labels) - 1]), positions)


def _row(encoded: Encoded, pictures: tuple[str, ...], wanted: Places, positions: Positions) -> Row:
    read = int(wanted[-1]) + 1
    ids = encoded.inputs["input_ids"][0, :read].numpy()
    return Row(encoded=encoded, pictures=pictures, ids=ids, wanted=wanted, positions=positions(encoded)[..., :read])


@dataclass(kw_only=True, eq=False)
class Pack:
    """Rows that are read together; each token that several have in common is there once."""

    places: list[int] = field(default_factory=list)
    """Which rows, in the order they were added."""
    paths: list[Places] = field(default_factory=list)
    """For each of them, where in the pack its tokens are."""
    shared: list[int] = field(default_factory=list)
    """For each of them, how many of its first tokens were there before."""
    ids: list[Places] = field(default_factory=list)
    """Tokens that each row added."""
    stand: list[Places] = field(default_factory=list)
    """Where these stand: [tokens] or [D, tokens]."""
    size: int = 0
    """Tokens in all."""

    def add(self, place: int, row: Row, shared: int) -> None:
        """Add a row whose first `shared` tokens are those of the last one."""
        new = np.arange(self.size, self.size + len(row.ids) - shared)
        self.paths.append(np.concatenate([self.paths[-1][:shared], new]) if shared else new)
        self.places.append(place)
        self.shared.append(shared)
        self.ids.append(row.ids[shared:])
        self.stand.append(row.positions[..., shared:])
        self.size += len(new)

    def roots(self) -> list[int]:
        """The rows that begin a tree: their pictures stand for those of all rows of it."""
        return [place for place, shared in zip(self.places, self.shared, strict=True) if not shared]

    def positions(self) -> Places:
        """[tokens] or [D, tokens], where each token stands in its rows."""
        return np.concatenate(self.stand, axis=-1)

    def sees(self, allowed: npt.NDArray[np.bool_]) -> None:
        """Mark in [tokens, tokens] which token attends to which."""
        for path, shared in zip(self.paths, self.shared, strict=True):
            new = path[shared:]
            allowed[np.ix_(new, path)] = np.tri(len(new), len(path), shared, dtype=bool)


def _alike(last: Row, row: Row, image_tokens: Places) -> int:
    """How many tokens two rows share at their beginning: with all of their pictures, or none."""
    if last.pictures != row.pictures:
        return 0
    both = min(len(last.ids), len(row.ids))
    different = (last.ids[:both] != row.ids[:both]).nonzero()[0]
    shared = int(different[0]) if len(different) else both
    return shared if not np.isin(row.ids[shared:], image_tokens).any() or not row.pictures else 0


def packs_of(rows: Sequence[Row], *, image_tokens: Sequence[int], most: int) -> list[Pack]:
    """Put rows into packs, those that begin alike into the same one.

    Args:
        rows: in any order.
        image_tokens: ids of the tokens that stand for pictures.
        most: tokens that a pack may hold, unless a single row has more.

    Returns:
        Packs in which each place occurs once; the shortest pack first.
    """
    packs: list[Pack] = []
    trees = _trees(rows, np.array(sorted(image_tokens)), most)
    for tree in sorted(trees, key=lambda tree: tree.size, reverse=True):  # first fit, the largest first
        pack = next((pack for pack in packs if pack.size + tree.size <= most), None)
        if pack is None:
            packs.append(tree)
            continue
        for place, shared in zip(tree.places, tree.shared, strict=True):
            pack.add(place, rows[place], shared)
    return sorted(packs, key=lambda pack: pack.size)


def _trees(rows: Sequence[Row], image_tokens: Places, most: int) -> list[Pack]:
    """Packs of rows that all begin alike; what begins alike is divided where it has more than `most` tokens."""
    trees: list[Pack] = []
    last: Row | None = None
    for place in sorted(range(len(rows)), key=lambda place: rows[place].order):
        row = rows[place]
        shared = _alike(last, row, image_tokens) if last is not None else 0
        if not shared or trees[-1].size + len(row.ids) - shared > most:
            trees.append(Pack())
            shared = 0
        trees[-1].add(place, row, shared)
        last = row
    return trees


def forests_of(rows: Sequence[Row], *, image_tokens: Sequence[int], batch_size: int) -> Iterator[list[Pack]]:
    """Packs that are read at once: no more tokens, padding included, than `batch_size` of the longest rows have."""
    longest = max(len(row.ids) for row in rows)
    budget = batch_size * longest
    most = min(budget, max(SMALLEST_PACK, ROWS_OF_A_PACK * longest))
    forest: list[Pack] = []
    for pack in packs_of(rows, image_tokens=image_tokens, most=most):
        if forest and (len(forest) + 1) * pack.size > budget:
            yield forest
            forest = []
        forest.append(pack)
    yield forest


class Reading(NamedTuple):
    """What a model computed of a forest."""

    logits: Tensor
    """[wanted tokens, V], float32; each token once."""
    found: dict[int, Tensor]
    """For each row, by its place, the lines of `logits` of its wanted positions: [N], on the model's device."""
    cache: Any
    """Keys and values of all tokens, or None."""


class Layout(NamedTuple):
    """A forest as tensors; packs that are shorter than the longest are filled up."""

    ids: Tensor
    """[P, T]"""
    positions: Tensor
    """[P, T] or [D, P, T], where each token stands in its rows."""
    allowed: Tensor
    """[P, T, T], bool: which token attends to which. What fills a pack up sees itself, and nobody sees it."""
    wanted: Tensor
    """[P, T], bool: whose next token some row wants."""
    found: dict[int, Tensor]
    """For each row, by its place, the lines of its wanted positions among all that are wanted: [N]."""


def laid_out(rows: Sequence[Row], forest: Sequence[Pack], *, pad_token_id: int) -> Layout:
    """A forest as a model takes it.

    Args:
        rows: those that the packs were made of.
        forest: P packs.
        pad_token_id: fills packs that are shorter than the longest.
    """
    size = max(pack.size for pack in forest)
    ids = np.full((len(forest), size), pad_token_id)
    dimensions = rows[forest[0].places[0]].positions.shape[:-1]
    positions, wanted = np.zeros((*dimensions, *ids.shape), dtype=ids.dtype), np.zeros_like(ids, dtype=bool)
    allowed = np.zeros((len(forest), size, size), dtype=bool)
    allowed[:, np.arange(size), np.arange(size)] = True
    for number, pack in enumerate(forest):
        ids[number, : pack.size] = np.concatenate(pack.ids)
        positions[..., number, : pack.size] = pack.positions()
        pack.sees(allowed[number])
        for place, path in zip(pack.places, pack.paths, strict=True):
            wanted[number, path[rows[place].wanted]] = True
    lines = wanted.cumsum().reshape(wanted.shape) - 1
    found = {
        place: torch.from_numpy(lines[number, path[rows[place].wanted]])
        for number, pack in enumerate(forest)
        for place, path in zip(pack.places, pack.paths, strict=True)
    }
    ids_, positions_, allowed_, wanted_ = map(torch.from_numpy, (ids, positions, allowed, wanted))
    return Layout(ids=ids_, positions=positions_, allowed=allowed_, wanted=wanted_, found=found)


def read(
    model: nn.Module, rows: Sequence[Row], forest: Sequence[Pack], *, pad_token_id: int, device: torch.device, keep: bool
) -> Reading:
    """Read a forest.

    Args:
        model: one that `can_share`.
        rows: those that the packs were made of.
        forest: P packs.
        pad_token_id: see `laid_out`.
        device: the model's.
        keep: return keys and values too, for rows that are to be continued.
    """
    layout = laid_out(rows, forest, pad_token_id=pad_token_id)
    callable_model: Any = model
    outputs = callable_model(
        input_ids=layout.ids.to(device),
        position_ids=layout.positions.to(device),
        attention_mask=attention_mask(layout.allowed.to(device), model.config),
        logits_to_keep=layout.wanted.to(device),
        use_cache=keep,
        **{key: value.to(device) for key, value in pictures_of(rows, forest, pad_token_id=pad_token_id).items()},
    )
    found = {place: lines.to(device) for place, lines in layout.found.items()}
    logits = outputs.logits.reshape(-1, outputs.logits.shape[-1]).float()
    return Reading(logits, found, outputs.past_key_values if keep else None)


def attention_mask(allowed: Tensor, config: Any) -> Tensor:
    """A mask of four dimensions in the form that the model's attention takes.

    Args:
        allowed: [P, queries, keys], bool: who sees whom.
        config: the model's configuration.

    Returns:
        [P, 1, queries, keys]
    """
    if config.get_text_config()._attn_implementation == SDPA:
        return allowed[:, None]
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, torch.finfo(torch.float32).min)[:, None]


def shown_in(rows: Sequence[Row], forest: Sequence[Pack]) -> list[Encoded]:
    """The rows whose pictures stand for those of their trees, in the order in which the tokens of pictures stand."""
    roots = [rows[place].encoded for pack in forest for place in pack.roots()]
    return [root for root in roots if root.inputs.keys() - PER_TOKEN]


def pictures_of(rows: Sequence[Row], forest: Sequence[Pack], *, pad_token_id: int) -> dict[str, Tensor]:
    """What a model takes of the pictures of all trees, once a picture."""
    shown = shown_in(rows, forest)
    inputs = collate(shown, pad_token_id=pad_token_id).inputs if shown else {}
    return {key: value for key, value in inputs.items() if key not in PER_TOKEN}
