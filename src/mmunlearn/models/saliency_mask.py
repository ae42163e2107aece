"""Saliency masks: one bit a weight that says whether a weight may be changed to forget. In memory, on disk, and compared.

How a mask is worked out stands in the package `saliency`; how it acts on training in `training/masking.py` and, for
adapters, in `models/masked_lora.py`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmunlearn.errors import ConfigError
from mmunlearn.models.families import Family, Part, part_of
from mmunlearn.run import MASK_FILE, write_atomically

FORMAT = "mmunlearn-mask-1"
SHOWN = 5
"""Names in a message."""


def pack(mask: Tensor) -> Tensor:
    """Eight booleans in a byte, the first in its lowest bit.

    Args:
        mask: bool, any shape.

    Returns:
        uint8, [ceil(number of weights / 8)]; the unused bits of the last byte are 0.
    """
    flat = mask.reshape(-1)
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << _places(mask.device)).sum(dim=1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: bool, of the given shape."""
    size = torch.Size(shape).numel()
    return ((bits[:, None] >> _places(bits.device)) & 1).view(-1)[:size].to(torch.bool).view(shape)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


@dataclass(frozen=True, kw_only=True)
class SaliencyMask:
    """A mask over whole parameters of a model, by their in-memory names (without any adapter)."""

    bits: Mapping[str, Tensor]
    """Packed, see `pack`."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the parameters."""
    card: Mapping[str, Any]
    """How it was made: rule, threshold, modules, loss, counts, fingerprints of model and data. JSON-able."""

    def tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """The mask of one parameter: bool, of its shape; True: may be changed."""
        bits = self.bits[name] if device is None else self.bits[name].to(device)
        return unpack(bits, self.shapes[name])

    def selected(self, name: str) -> int:
        """How many weights of one parameter are True."""
        return int(self.tensor(name).sum())

    def size(self, name: str) -> int:
        """How many weights one parameter has."""
        return torch.Size(self.shapes[name]).numel()

    def counts(self, family: Family) -> dict[Part, tuple[int, int]]:
        """Selected and covered weights of each part that the mask covers."""
        found: dict[Part, tuple[int, int]] = {}
        for name in self.bits:
            part = part_of(name, family)
            selected, covered = found.get(part, (0, 0))
            found[part] = selected + self.selected(name), covered + self.size(name)
        return found

    def restricted(self, names: Iterable[str]) -> "SaliencyMask":
        """The mask of some parameters alone."""
        kept = list(names)
        return SaliencyMask(
            bits={name: self.bits[name] for name in kept},
            shapes={name: self.shapes[name] for name in kept},
            card=self.card,
        )


def mask_of(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> SaliencyMask:
    """A mask from boolean tensors by parameter name."""
    return SaliencyMask(
        bits={name: pack(mask) for name, mask in tensors.items()},
        shapes={name: tuple(mask.shape) for name, mask in tensors.items()},
        card=card,
    )


def mask_fingerprint(mask: SaliencyMask) -> str:
    """Sixteen hexadecimal digits that identify the bits, whatever the card says."""
    digest = hashlib.blake2b(digest_size=8)
    for name, bits in sorted(mask.bits.items()):
        digest.update(f"{name}{mask.shapes[name]}".encode())
        digest.update(bits.cpu().numpy().tobytes())
    return digest.hexdigest()


def overlap(first: SaliencyMask, second: SaliencyMask, names: Iterable[str] | None = None) -> float:
    """Jaccard index of two masks: weights selected by both over weights selected by either; NaN if neither selects any.

    Args:
        first: one mask.
        second: another one of the same model.
        names: the parameters to look at; by default those that both cover.
    """
    both = either = 0
    for name in names if names is not None else [name for name in first.bits if name in second.bits]:
        left, right = first.tensor(name), second.tensor(name)
        both += int((left & right).sum())
        either += int((left | right).sum())
    return both / either if either else float("nan")


def save_mask(mask: SaliencyMask, path: Path) -> None:
    """Write a mask as safetensors, one bit a weight; shapes and card are in the header. Atomic."""
    header = {"format": FORMAT, "shapes": json.dumps(mask.shapes), "card": json.dumps(mask.card)}
    write_atomically(path, lambda temporary: save_file(dict(mask.bits), temporary, metadata=header))


def load_mask(path: str | Path) -> SaliencyMask:
    """Read a mask.

    Raises:
        ConfigError: no such file, or not a mask of this package; pickled masks (`.pt`) are never read.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / MASK_FILE
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such mask. Make one with `mmunlearn saliency`, or correct the path.")
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            bits = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 not a dictionary
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{file}: not a safetensors file ({error}). Pickled masks (.pt) can run code and are not read; make the mask "
            "with `mmunlearn saliency`."
        ) from error
    if header.get("format") != FORMAT:
        raise ConfigError(f"{file}: a safetensors file, but not a mask of this package. Make one with `mmunlearn saliency`.")
    shapes, card = _parsed(file, header)
    for name in shapes.keys() | bits.keys():
        if name not in shapes or name not in bits or not _complete(bits[name], shapes[name]):
            raise ConfigError(f"{file}: the bits of {name} are damaged. Make the mask anew with `mmunlearn saliency`.")
    return SaliencyMask(bits={name: bits[name] for name in shapes}, shapes=shapes, card=card)


def _parsed(file: Path, header: Mapping[str, str]) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes and card from a file's header."""
    try:
        shapes = {str(name): tuple(map(int, shape)) for name, shape in json.loads(header["shapes"]).items()}
        card = dict(json.loads(header["card"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: the header of the mask is damaged ({type(error).__name__}: {error}). Make the mask anew with "
            "`mmunlearn saliency`."
        ) from error
    return shapes, card


def _complete(bits: Tensor, shape: tuple[int, ...]) -> bool:
    whole = all(size >= 0 for size in shape)
    return bits.dtype is torch.uint8 and bits.dim() == 1 and whole and bits.numel() == -(-torch.Size(shape).numel() // 8)


def check_fits(mask: SaliencyMask, shapes: Mapping[str, tuple[int, ...]], trained: Iterable[str], family: Family) -> None:
    """Make sure that a mask would act on a model as intended.

    Args:
        mask: the mask.
        shapes: of all parameters of the model, by bare name.
        trained: bare names of the parameters that the mask has to govern.
        family: which part a parameter belongs to.

    Raises:
        ConfigError: it names parameters that the model does not have or in other shapes, does not cover a trained one, or
            selects all or no weights of a part; with the names.
    """
    unmatched = [name for name, shape in mask.shapes.items() if shapes.get(name) != shape]
    if unmatched:
        raise ConfigError(
            f"The mask does not fit the model: {_names(unmatched)} {'is' if len(unmatched) == 1 else 'are'} not in it or of "
            "another shape. Make the mask from the model that is to forget (`mmunlearn saliency model.path=…`)."
        )
    trained = list(trained)
    free = [name for name in trained if name not in mask.bits]
    if free:
        raise ConfigError(
            f"The mask says nothing about {_names(free)}, so nothing would hold these weights back. Freeze their parts "
            "(model.tune.…), or make a mask that covers them (saliency.modules=both)."
        )
    uniform: dict[Part, list[tuple[str, int, int]]] = {}
    for name in trained:
        uniform.setdefault(part_of(name, family), []).append((name, mask.selected(name), mask.size(name)))
    for part, rows in uniform.items():
        selected, size = sum(row[1] for row in rows), sum(row[2] for row in rows)
        if selected in (0, size):
            what = "no weight" if selected == 0 else "every weight"
            raise ConfigError(
                f"The mask selects {what} of the {part} part ({_names([row[0] for row in rows])}): unlearning with it would "
                f"{'change nothing' if selected == 0 else 'be the same as without it'}. See saliency.threshold."
            )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more
