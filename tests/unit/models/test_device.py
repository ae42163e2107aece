import pytest
import torch

from mmunlearn.errors import RunError
from mmunlearn.models.device import explain_full_memory, pick_device

FULL = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free."


def test_a_full_gpu_is_one_message_with_the_advice():
    message = r"memory of the GPU is full, 2\.50 GiB more .* Take less\.$"
    with pytest.raises(RunError, match=message), explain_full_memory("Take less."):
        raise torch.OutOfMemoryError(FULL)
    with pytest.raises(RunError, match=r"memory of the GPU is full \(this run"), explain_full_memory("Take less."):
        raise torch.OutOfMemoryError("CUDA error: out of memory")


def test_a_full_machine_is_one_message_with_the_advice():
    message = r"memory of this machine is full \(.*allocate.*\)\. Take less\.$"
    with pytest.raises(RunError, match=message), explain_full_memory("Take less."):
        torch.empty(10**15)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), explain_full_memory(""):
        raise RuntimeError("shapes do not match")


def test_devices_are_picked_by_name():
    assert pick_device("cpu") == torch.device("cpu")
