"""How a saliency mask acts on training: on gradients, term by term, and the proof that nothing else moved."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from mmunlearn.config import TrainerArgs
from mmunlearn.config_enums import Schedule, Scope
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.methods.base import Masked
from mmunlearn.models.families import Family, bare_name
from mmunlearn.models.masked_lora import mask_adapter
from mmunlearn.models.saliency_mask import SaliencyMask, check_fits, load_mask, unpack


def governed(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters on which a mask acts directly, by bare name; adapters have masks of their own."""
    return {
        bare_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }


class GradientMask:
    """Sets the gradient outside a mask to exactly 0 while it is switched on; inside, no bit of it changes.

    It acts in hooks on the parameters, before gradients of several terms are added up, so that one term can be masked and
    another not.
    """

    def __init__(self, model: nn.Module, mask: SaliencyMask, *, after_clipping: bool = False) -> None:
        """Put the hooks in place.

        Args:
            model: the model in training.
            mask: covers every parameter that is trained fully, see `saliency_mask.check_fits`.
            after_clipping: do not act in the backward pass but when `apply` is called, as the published script does.
        """
        self.after_clipping = after_clipping
        self.on = False
        self._rows = [
            (parameter, mask.bits[name].to(parameter.device), mask.shapes[name]) for name, parameter in governed(model).items()
        ]
        for parameter, bits, shape in self._rows:
            parameter.register_hook(self._hook(bits, shape))  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Within this context gradients are masked."""
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def apply(self) -> None:
        """Mask the gradients that have been added up."""
        for parameter, bits, shape in self._rows:
            if parameter.grad is not None:
                parameter.grad.mul_(unpack(bits, shape))

    def _hook(self, bits: Tensor, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor | None]:
        def hook(gradient: Tensor) -> Tensor | None:
            if not self.on or self.after_clipping:
                return None
            return gradient * unpack(bits, shape)  # several times as fast as filling in zeros

        return hook


class Unmoved:
    """Remembers the weights outside a mask, as fingerprints, and proves at the end that none has moved by one bit."""

    def __init__(self, model: nn.Module, mask: SaliencyMask) -> None:
        """Take the fingerprints; one tensor at a time is looked at."""
        self._mask = mask
        self._before = dict(_fingerprints(model, mask))

    def check(self, model: nn.Module) -> None:
        """Compare.

        Raises:
            RunError: something outside the mask moved; names the tensors.
        """
        after = dict(_fingerprints(model, self._mask))
        moved = [name for name, digest in self._before.items() if after.get(name) != digest]
        if moved:
            raise RunError(
                f"Weights outside the mask moved in {len(moved)} tensors ({', '.join(moved[:5])}), so the model was not "
                "saved: scope=update promises that none does. Please report this with your config.yaml."
            )


@dataclass(frozen=True, kw_only=True)
class Masking:
    """A mask in force on a model that is about to be trained."""

    gradients: GradientMask
    mask: SaliencyMask
    unmoved: Unmoved | None
    """The proof to be made at the end; only with scope update."""


def put_on(model: nn.Module, family: Family, method: Masked, args: TrainerArgs, schedule: Schedule) -> Masking:
    """Read a method's mask, make sure that it will act as promised, and put it in force.

    Args:
        model: with its tuning applied (see `apply_tuning`); adapters get the mask on their effective update.
        family: the model's.
        method: names mask and scope.
        args: of the run.
        schedule: of the run.

    Raises:
        ConfigError: no mask, a mask that does not fit, or settings under which it could not act as promised.
    """
    if not method.mask:
        raise ConfigError(
            f"trainer.method.mask: {type(method).__name__} needs a saliency mask. Make one: mmunlearn saliency model.path=…, "
            "then trainer.method.mask=FOLDER."
        )
    strict = method.scope == Scope.update
    adapted = isinstance(model, PeftModel)
    _check_settings(method, args, schedule, strict=strict, adapted=adapted)
    mask = load_mask(method.mask)
    shapes = {bare_name(name): tuple(p.shape) for name, p in model.named_parameters() if "lora_" not in name}
    trained = governed(model)
    check_fits(mask, shapes, trained, family)
    if isinstance(model, PeftModel):
        mask_adapter(model, mask)
    gradients = GradientMask(model, mask, after_clipping=method.clip_before_mask)
    return Masking(gradients=gradients, mask=mask, unmoved=Unmoved(model, mask) if strict else None)


def _check_settings(method: Masked, args: TrainerArgs, schedule: Schedule, *, strict: bool, adapted: bool) -> None:
    if adapted and not strict:
        raise ConfigError(
            "trainer.method.scope=forget together with LoRA: forget and retain share an adapter's update, so a mask on one of "
            "them cannot be exact. Set trainer.method.scope=update, or tune with model.tune.….mode=full."
        )
    if strict and args.weight_decay:
        raise ConfigError(
            f"trainer.args.weight_decay={args.weight_decay} would move weights outside the mask. Set it to 0, or "
            "trainer.method.scope=forget."
        )
    if method.clip_before_mask and not strict and schedule != Schedule.alternating:
        raise ConfigError(
            "trainer.method.clip_before_mask=true needs steps about one side: set trainer.schedule=alternating "
            "(or trainer.method.scope=update, which masks everything)."
        )
    if method.clip_before_mask and adapted:
        raise ConfigError(
            "trainer.method.clip_before_mask=true is not possible with LoRA, where the mask is part of the update."
        )


def _fingerprints(model: nn.Module, mask: SaliencyMask) -> Iterator[tuple[str, str]]:
    """Of each parameter: what lies outside the mask if it is trained, else all of it."""
    trained: Mapping[str, nn.Parameter] = governed(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        bare, held = bare_name(name), parameter.detach()
        if bare in trained:
            held = held[~mask.tensor(bare, held.device)]
        digest = hashlib.blake2b(digest_size=16)
        digest.update(held.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        yield bare, digest.hexdigest()
