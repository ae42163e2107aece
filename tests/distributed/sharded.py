"""The loop on another engine: weights sharded over the ranks by FSDP2 (`fully_shard`), which only a test uses so far.

    python -m torch.distributed.run --nproc_per_node 2 sharded.py FOLDER

It shows that the engine is a seam of the loop: nothing but the object given as `engine` differs from a plain run.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_cases import Setup, make_examples, tiny_model, training_of

from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.models.device import open_accelerator
from mmunlearn.models.families import LLAVA
from mmunlearn.models.tuning import trainable

STEPS = 2


class Sharded:
    """An engine whose gradients are scattered over the ranks during the backward pass, as averages."""

    def __init__(self, model, optimizer, ranks):
        self.parameters, self.optimizer, self.ranks = trainable(model, LLAVA), optimizer, ranks

    def backward(self, loss, *, masked=False):
        assert not masked, "FSDP's hooks would not mask"
        loss.backward()

    def step(self, max_norm):
        norms = {}
        for part, own in self.parameters.items():
            for _, parameter in own:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.ranks)  # the ranks hold shares of one sum
            squares = [float(p.grad.full_tensor().square().sum()) for _, p in own if p.grad is not None]
            norms[str(part)] = math.sqrt(sum(squares))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms


def sgd(model, family, tune, args):
    return torch.optim.SGD(
        [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 0.5, "peak": 0.5, "part": "language"}]
    )


def main(folder):
    accelerator = open_accelerator("cpu", bf16=False)
    ranks = accelerator.num_processes
    model, processor = tiny_model()
    # Every rank needs every module in every step, so every example has a picture.
    data = TrainingData(forget=make_examples("forget", 4, images="all"), retain=make_examples("retain", 4, images="all"))
    setup = Setup(GradDiff(forget_weight=0.5), data, model, processor, folder / f"run-{ranks}", batch_size=4 // ranks)
    setup.accelerator, setup.args, setup.optimizer = accelerator, {"max_steps": STEPS}, sgd
    training = training_of(setup)
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = sgd(model, None, None, None)  # of the sharded parameters
        training = replace(training, optimizer=optimizer, engine=Sharded(model, optimizer, ranks))
    training.run()
    weights = {name: value.full_tensor() if ranks > 1 else value for name, value in model.state_dict().items()}
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, folder / f"weights-{ranks}.safetensors")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
