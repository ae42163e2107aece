"""What the command line prints of a model's family is a warning from Python."""

import warnings

import pytest
from tiny_cases import make_examples, tiny_family

from mmunlearn import api
from mmunlearn.benchmarks.people import People
from mmunlearn.config import TrainerArgs
from mmunlearn.config_enums import Protocol
from mmunlearn.errors import ConfigError
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.models import generic
from mmunlearn.training.job import Settings

EXAMPLES = make_examples("forget", 2)


def evaluate(model, processor):
    """Ends before anything is asked."""
    with pytest.raises(ConfigError, match="one way at a time"):
        api.evaluate(model, processor, People(), settings=api.EvaluationSettings(protocol=Protocol.both, device="cpu"))


def unlearn(model, processor):
    """Ends before anything is trained."""
    settings = Settings(args=TrainerArgs(report_to="nowhere"), device="cpu")
    with pytest.raises(ConfigError, match="there is no tracker"):
        api.unlearn(model, processor, forget=EXAMPLES, method=GradAscent(), settings=settings)


@pytest.mark.parametrize("call", [evaluate, unlearn])
def test_a_family_that_was_worked_out_is_a_warning(call, monkeypatch):
    model, processor = tiny_family("llava")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call(model, processor)
    assert not [each for each in told if "table of families" in str(each.message)]
    monkeypatch.setattr(generic, "FAMILIES", {})
    with pytest.warns(UserWarning, match="not in the table of families.*Not determined") as told:
        call(model, processor)
    (own,) = [each for each in told if "table of families" in str(each.message)]
    assert own.filename == __file__, "it points at the caller"
