"""Greedy replies behind rows that were read as a forest (`prefix.py`): the tokens of all rows of a pack share its memory.

Legend: P packs, Q rows of a pack that still write, K keys of a pack so far, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from mmunlearn.models.prefix import Pack, Reading, Row, attention_mask

GREEDY = "greedy"
CHANGES_LOGITS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "stop_strings": (None,),
    "watermarking_config": (None,),
}
"""Settings of a model's `generation_config` that change what greedy decoding writes, with the values at which they do not."""
STEPS_AHEAD = 16
"""For at most so many tokens of each row room is made behind the keys and values, whenever they have to be copied."""


def writes_plainly(model: nn.Module) -> bool:
    """Whether greedy decoding takes the likeliest token and does nothing else, as `greedy` does."""
    return getattr(model, "generation_config", None) is not None and decoding_of(model) == GREEDY


def decoding_of(model: nn.Module) -> str:
    """How replies are written: greedily, with what the model's own `generation_config` adds, as published scripts leave it."""
    config = getattr(model, "generation_config", None)
    found = [(name, getattr(config, name, None), plain) for name, plain in CHANGES_LOGITS.items()]
    return ", ".join([GREEDY, *(f"{name}={value}" for name, value, plain in found if value is not None and value not in plain)])


class Written(NamedTuple):
    """What was written behind one row."""

    ids: list[int]
    """Tokens, the end token included where there was one."""
    smallest_gap: float
    """Between the two best logits of any step; NaN as with a destroyed model."""


class _Room(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values with room behind them: transformers' own layer copies all of them with every token."""

    def __init__(self, keys: Tensor, values: Tensor, *, ahead: int) -> None:
        """Copy.

        Args:
            keys: [P, heads, K, size of a head].
            values: likewise.
            ahead: for how many more tokens of a pack there shall be room, now and whenever it is used up.
        """
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.ahead = ahead
        self._spread(keys, values)

    def _spread(self, keys: Tensor, values: Tensor) -> None:
        packs, heads, count, size = keys.shape
        self._all_keys, self._all_values = (each.new_empty(packs, heads, count + self.ahead, size) for each in (keys, values))
        self._all_keys[:, :, :count], self._all_values[:, :, :count] = keys, values
        self.keys, self.values = self._all_keys[:, :, :count], self._all_values[:, :, :count]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append those of new tokens; returns all."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        if end > self._all_keys.shape[2]:
            self._spread(self.keys, self.values)
        self._all_keys[:, :, begin:end], self._all_values[:, :, begin:end] = key_states, value_states
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values


class _Writers:
    """The rows that still write, and what each of them sees."""

    def __init__(self, rows: Sequence[Row], forest: Sequence[Pack], limits: dict[int, int], reading: Reading) -> None:
        places, wanted = list(limits), set(limits)
        self.left = max(limits.values()) - 1  # steps: the first token was read
        self.device = reading.logits.device
        self.cache = reading.cache
        self.keys = max(pack.size for pack in forest)
        every = [
            (number, place, torch.from_numpy(path))
            for number, pack in enumerate(forest)
            for place, path in zip(pack.places, pack.paths, strict=True)
            if place in wanted
        ]
        # Rows about one picture go on sharing it. Others share little: each goes on alone, lest it pass by all their keys.
        trees = [(number, int(path[0]) if rows[place].pictures else -1 - place) for number, place, path in every]
        found = list(dict.fromkeys(trees))
        self.packs = [found.index(tree) for tree in trees]
        self.held = [number for number, _ in found]
        self.places = [place for _, place, _ in every]
        self.next_positions = [rows[place].next_position for place in self.places]
        self.dimensions = rows[places[0]].positions.shape[:-1]
        self.sees = torch.zeros((len(every), self.keys), dtype=torch.bool)
        for line, (_, _, path) in enumerate(every):
            self.sees[line, path] = True
        self._forget_what_nobody_sees()

    def _forget_what_nobody_sees(self) -> None:
        """Keep of every pack that still writes the keys that one of its writers sees, and drop the other packs."""
        packs = sorted(set(self.packs))
        own = {pack: torch.tensor([number == pack for number in self.packs]) for pack in packs}
        columns = [self.sees[own[pack]].any(dim=0).nonzero()[:, 0] for pack in packs]
        most = max(len(column) for column in columns)
        index = torch.stack([torch.nn.functional.pad(column, (0, most - len(column))) for column in columns])
        sees = torch.zeros((len(self.packs), most), dtype=torch.bool)
        for pack, column in zip(packs, columns, strict=True):
            sees[own[pack], : len(column)] = self.sees[own[pack]][:, column]
        self.sees, self.keys = sees, most
        self.packs = [packs.index(pack) for pack in self.packs]
        rows = torch.tensor([self.held[pack] for pack in packs], device=self.device)[:, None]
        chosen = index.to(self.device)
        self.held = list(range(len(packs)))
        ahead = self._ahead()
        for number, layer in enumerate(self.cache.layers):  # [P, heads, K, size of a head]
            keys, values = (each[rows, :, chosen].transpose(1, 2) for each in (layer.keys, layer.values))
            self.cache.layers[number] = _Room(keys, values, ahead=ahead)

    def _ahead(self) -> int:
        """Tokens of a pack for which room is to be made."""
        return min(STEPS_AHEAD, self.left) * max(Counter(self.packs).values())

    def keep(self, going: Sequence[bool]) -> None:
        """Let some of the rows end."""
        lines = [line for line, goes in enumerate(going) if goes]
        self.packs, self.places, self.next_positions = (
            [values[line] for line in lines] for values in (self.packs, self.places, self.next_positions)
        )
        self.sees = self.sees[lines]
        if lines and 2 * len(set(self.packs)) <= len(self.held):
            self._forget_what_nobody_sees()

    def step(self, model: nn.Module, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row and return the logits behind it: [rows, V], float32."""
        slots: list[int] = []
        taken: dict[int, int] = {}
        for pack in self.packs:
            slots.append(taken.get(pack, 0))
            taken[pack] = slots[-1] + 1
        count, width = len(self.held), max(taken.values())
        ids, positions = torch.zeros((count, width), dtype=torch.long), torch.zeros((count, width), dtype=torch.long)
        ids[self.packs, slots] = torch.tensor(tokens)
        positions[self.packs, slots] = torch.tensor(self.next_positions)
        self.sees = torch.nn.functional.pad(self.sees, (0, width))
        self.sees[range(len(slots)), [self.keys + slot for slot in slots]] = True
        allowed = torch.zeros((count, width, self.keys + width), dtype=torch.bool)
        allowed[:, :, self.keys :] = torch.eye(width, dtype=torch.bool)  # an empty slot sees itself
        allowed[self.packs, slots] = self.sees
        ahead = self._ahead()
        for layer in self.cache.layers:
            layer.ahead = ahead
        self.left -= 1
        callable_model: Any = model
        outputs = callable_model(
            input_ids=ids.to(self.device),
            position_ids=positions.expand(*self.dimensions, -1, -1).to(self.device),
            attention_mask=attention_mask(allowed.to(self.device), model.config),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.keys += width
        self.next_positions = [position + 1 for position in self.next_positions]
        logits: Tensor = outputs.logits[self.packs, slots].float()
        return logits


@torch.inference_mode()
def greedy(
    model: nn.Module,
    rows: Sequence[Row],
    forest: Sequence[Pack],
    reading: Reading,
    limits: dict[int, int],
    *,
    end_token_id: int,
) -> dict[int, Written]:
    """Write behind some rows of a forest, the likeliest token each time, until the end token or a limit.

    Args:
        model: the model that read it.
        rows: those that the packs were made of.
        forest: what was read.
        reading: with keys and values; they are used up.
        limits: of each row to be continued, by its place: the number of tokens that it may write.
        end_token_id: what ends a reply.
    """
    writers = _Writers(rows, forest, limits, reading)
    logits = torch.stack([reading.logits[reading.found[place][-1]] for place in writers.places])
    written: dict[int, list[int]] = {place: [] for place in writers.places}
    smallest = dict.fromkeys(writers.places, math.inf)
    while writers.places:
        best = logits.topk(2, dim=-1).values
        gaps = (best[:, 0] - best[:, 1]).tolist()
        tokens = logits.argmax(dim=-1).tolist()
        going = []
        for place, gap, token in zip(writers.places, gaps, tokens, strict=True):
            written[place].append(token)
            smallest[place] = math.nan if math.isnan(gap + smallest[place]) else min(gap, smallest[place])
            going.append(token != end_token_id and len(written[place]) < limits[place])
        writers.keep(going)
        if writers.places:
            logits = writers.step(model, [token for token, goes in zip(tokens, going, strict=True) if goes])
    return {place: Written(ids, smallest[place]) for place, ids in written.items()}
