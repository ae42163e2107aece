import os

import pytest
import torch

from mmunlearn.errors import RunError
from mmunlearn.training.determinism import FLASH, WORKSPACE, determinism


def state():
    cudnn = torch.backends.cudnn
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warned, cudnn.deterministic, cudnn.benchmark


def test_it_holds_inside_and_everything_is_restored_behind(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.delenv(FLASH, raising=False)
    before = state()
    with determinism(True):
        assert state() == (True, False, True, False)
        assert os.environ[WORKSPACE] == ":4096:8"
        assert os.environ[FLASH] == "1"
    assert state() == before
    with pytest.raises(ZeroDivisionError), determinism(True):
        raise ZeroDivisionError
    assert state() == before


def test_a_callers_own_setting_is_restored():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = state()
        with determinism(True):
            assert state() != before
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_off_it_changes_nothing(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = state()
    with determinism(False):
        assert state() == before
        assert WORKSPACE not in os.environ


def test_an_algorithm_that_is_not_there_is_named_with_a_remedy():
    """As torch says it; on a CPU everything is there."""
    with pytest.raises(RunError, match=r"full_determinism=true.*histc_cuda.*run\.device=cpu"), determinism(True):
        raise RuntimeError("_histc_cuda does not have a deterministic implementation, but you set …\nmore")
    with pytest.raises(RuntimeError, match="something else"), determinism(True):
        raise RuntimeError("something else")
