"""The same bits each time on a GPU too, where many algorithms add up in whatever order their threads come."""

import contextlib
import os
from collections.abc import Iterator

import torch

from mmunlearn.errors import RunError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS repeats its sums only with work areas of a fixed size; it reads this when it is first used."""
FLASH = "FLASH_ATTENTION_DETERMINISTIC"
"""By which transformers tells FlashAttention, which torch's own settings do not reach (model.attention=flash_attention_2)."""
COMPLAINTS = ("deterministic implementation", WORKSPACE)
"""What torch says where it has no such algorithm, or where cuBLAS was set up otherwise before."""


@contextlib.contextmanager
def determinism(on: bool) -> Iterator[None]:
    """Within this context torch takes only algorithms that repeat their bits; on a CPU they all do.

    To be entered before anything is computed on a GPU. torch's settings are restored at the end; the environment variables,
    which cuBLAS and FlashAttention may have read by then, stay.

    Raises:
        RunError: a layer of the model has no such algorithm on this device; says which.
    """
    if not on:
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    os.environ[FLASH] = "1"
    cudnn = torch.backends.cudnn
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    convolutions = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in COMPLAINTS):
            reason = str(error).splitlines()[0]
            raise RunError(
                f"trainer.args.full_determinism=true, but that cannot be had here: {reason} Set it to false or run.device=cpu; "
                "another model.attention may help."
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        cudnn.deterministic, cudnn.benchmark = convolutions
