"""DeepSpeed's ZeRO stages: gradients and the optimizer's state (2), and the weights too (3), divided among the ranks.

DeepSpeed is driven through its own interface (`deepspeed.initialize`), not through Accelerate. What it does otherwise than the
other engines: a tuned weight that no micro-batch of a step has used counts as having a gradient of 0, so that AdamW goes on
moving it by its momentum; and a gradient that is not finite is only noticed behind the step.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from mmunlearn.config import TrainerArgs
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.models.adapter_probe import probe
from mmunlearn.models.load import Gathered
from mmunlearn.models.reference import Frozen
from mmunlearn.training.checkpoint import Ranks

AUTO = "auto"
PASSES = 1 << 20
"""Backward passes of a step as far as DeepSpeed knows; which one is the last is said by `DeepSpeedZero.begin`."""
WHOLE_WEIGHTS_END = 3
"""From this stage on no rank has the whole weights."""


def read_settings(file: str) -> dict[str, Any]:
    """A DeepSpeed JSON file.

    Raises:
        ConfigError: there is none, it is not JSON, or its ZeRO stage is not 1, 2 or 3.
    """
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
        stage = settings["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"trainer.args.deepspeed={file}: not a DeepSpeed file with a zero_optimization stage ({type(error).__name__}: "
            f"{error}). Take configs/deepspeed/zero2.json or zero3.json."
        ) from error
    if stage not in (1, 2, 3):
        raise ConfigError(
            f"trainer.args.deepspeed={file}: zero_optimization.stage={stage}. Use 2, or 3 to divide the weights too."
        )
    for name in ("offload_optimizer", "offload_param"):
        if settings["zero_optimization"].get(name, {}).get("device") == "nvme":
            raise ConfigError(f"trainer.args.deepspeed={file}: {name} to nvme is not supported. Use cpu or none.")
    return dict(settings)


def completed(file: str, args: TrainerArgs, *, ranks: int, width: int, half: bool) -> dict[str, Any]:
    """The settings of a file, with ours in place of every `auto`.

    Args:
        file: the JSON file.
        args: decide batch, clipping and precision.
        ranks: how many share a step.
        width: hidden size of the language part, from which ZeRO-3 takes the sizes of its buckets.
        half: the model's weights are bfloat16.

    Raises:
        ConfigError: see `read_settings`; or the file names another value than the settings of the run do.
    """
    settings = read_settings(file)
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": accumulated,
        "train_batch_size": batch * accumulated * ranks,
        "gradient_clipping": args.max_grad_norm,
    }
    for name, value in ours.items():
        if settings.get(name, AUTO) not in (AUTO, value):
            raise ConfigError(
                f"trainer.args.deepspeed={file}: {name} is {settings[name]}, but by trainer.args it is {value}. Write "
                f'"{AUTO}" in the file.'
            )
    # DeepSpeed counts each of our backward passes, of which a step has one for every term, as a micro-batch.
    ours |= {"gradient_accumulation_steps": PASSES, "train_batch_size": batch * PASSES * ranks}
    zero = dict(settings["zero_optimization"])
    zero |= {name: int(size * width**power) for name, (size, power) in _BUCKETS.items() if zero.get(name) == AUTO}
    bf16 = dict(settings.get("bf16", {}))
    if bf16.get("enabled", AUTO) == AUTO:
        bf16["enabled"] = half or args.bf16
    fixed = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "steps_per_print": 1 << 30}
    return {**fixed, **settings, **ours, "zero_optimization": zero, "bf16": bf16}


_BUCKETS = {
    "reduce_bucket_size": (1, 2),
    "stage3_prefetch_bucket_size": (0.9, 2),
    "stage3_param_persistence_threshold": (10, 1),
}
"""What transformers' Trainer puts in place of `auto`: so many times this power of the hidden size."""


class DeepSpeedZero:
    """The engine of a model that DeepSpeed has taken over."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        settings: dict[str, Any],
    ) -> None:
        """Hand model and optimizer to DeepSpeed; `settings` as `completed` makes them."""
        import deepspeed  # an extra of this package

        self.model = model
        self.accelerator = accelerator
        self.stage = int(settings["zero_optimization"]["stage"])
        deepspeed.init_distributed(dist_backend="gloo" if accelerator.device.type == "cpu" else "nccl")
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self._left = 0

    @property
    def asked(self) -> nn.Module:
        """What forward passes go through."""
        asked: nn.Module = self.engine
        return asked

    def begin(self, passes: int) -> None:
        """Remember which backward pass will be the last of this step."""
        self._left = passes

    def backward(self, loss: Tensor, *, masked: bool = False) -> None:
        """Add the gradient of one term of one micro-batch, of all ranks.

        Raises:
            RunError: the term is masked, or no tuned weight took part.
        """
        if masked:
            raise RunError("A masked term cannot be trained under ZeRO. Set trainer.args.deepspeed=null.")
        if not loss.requires_grad:
            raise RunError(
                "A micro-batch without a picture uses none of the tuned weights, which DeepSpeed cannot skip. Tune the "
                "language part too, or set trainer.args.deepspeed=null (and trainer.args.fsdp=true)."
            )
        self._left -= 1
        self.engine.set_gradient_accumulation_boundary(self._left == 0)
        # DeepSpeed averages over the ranks, which hold shares of one sum.
        self.engine.backward(loss * self.accelerator.num_processes, scale_wrt_gas=False)

    def step(self, max_norm: float) -> dict[str, float]:
        """Update and clear; see `Engine.step`. DeepSpeed clips by itself, to what its settings were completed with.

        Returns:
            The norm of the whole gradient before clipping, by the name `all`.

        Raises:
            RunError: the gradient is not finite.
        """
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm) or norm < 0:  # -1: an overflow
            raise RunError(
                "The gradient is not finite, and DeepSpeed notices that behind the step; the last checkpoint is untouched. "
                "Lower trainer.args.learning_rate, or, in half precision, use model.dtype=float32."
            )
        return {"all": norm}

    @property
    def ranks(self) -> Ranks | None:
        """All of them, with what each of them keeps."""
        return Ranks(self.accelerator, self)

    def gathered(self) -> Gathered | None:
        """Weights and probe, see `Engine.gathered`."""
        asked = probe(self.model) if isinstance(self.model, PeftModel) else None
        return Gathered(weights=self._weights(), probe=asked)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """This rank's share of the weights (float32) and of the optimizer's state; see `checkpoint.Shards`."""
        state = self.optimizer.optimizer.state
        moments = {
            f"{number}.{name}": torch.as_tensor(value).detach()
            for number, share in enumerate(self._shares)
            for name, value in state.get(share, {}).items()
        }
        return {str(number): share.detach() for number, share in enumerate(self._shares)}, moments

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for number, share in enumerate(self._shares):
            share.copy_(weights[str(number)])
        for key, value in moments.items():
            position, name = key.split(".", 1)
            share = self._shares[int(position)]
            self.optimizer.optimizer.state[share][name] = value.to(share.device)
        if self.stage < WHOLE_WEIGHTS_END:
            self.optimizer.update_lp_params()
            return
        for number in range(len(self._shares)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(number)
        self.optimizer._post_step(set())

    @property
    def _shares(self) -> list[Tensor]:
        """This rank's float32 weights, flat, one tensor for each of DeepSpeed's groups."""
        sharded = self.stage >= WHOLE_WEIGHTS_END
        found = self.optimizer.fp32_partitioned_groups_flat if sharded else self.optimizer.single_partition_of_fp32_groups
        return list(found)

    @torch.no_grad()
    def _weights(self) -> dict[str, Tensor]:
        """The whole weights on the first rank's CPU, float32 where they are trained; every rank has to call it."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        once: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            parameter = parameters.get(name)
            if isinstance(self.model, PeftModel) and (parameter is None or not parameter.requires_grad):
                continue
            number = id(value if parameter is None else parameter)
            if number not in once and parameter is not None and parameter.requires_grad:
                once[number] = safe_get_full_fp32_param(parameter).cpu()
            elif number not in once:
                with GatheredParameters([] if parameter is None else [parameter]):
                    once[number] = (value if parameter is None else parameter).detach().cpu().clone()
            found[name] = once[number]
        return found if self.accelerator.is_main_process else {}


def freeze(file: str, model: nn.Module) -> nn.Module:
    """A model that keeps its present weights while `model` is trained.

    Raises:
        ConfigError: that takes a copy of weights that no rank has as a whole.
    """
    tuned = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name]
    if tuned and read_settings(file)["zero_optimization"]["stage"] >= WHOLE_WEIGHTS_END:
        raise ConfigError(
            f"trainer.args.deepspeed={file}: the method compares with the model before unlearning, of which ZeRO-3 cannot keep "
            "a copy of the parts that are tuned fully. Tune with LoRA, use configs/deepspeed/zero2.json, or "
            "trainer.args.fsdp=true with trainer.args.deepspeed=null."
        )
    return Frozen(model)
