"""An engine that shards the weights takes the place of plain replication without any other change, and gives the same."""

from pathlib import Path

import pytest
from launching import on_one_and_two_ranks
from safetensors.torch import load_file
from tiny_cases import relative_difference, tiny_model

from mmunlearn.run import read_json_lines

SCRIPT = Path(__file__).with_name("sharded.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one process and two sharded ranks left weights and records."""
    folder = tmp_path_factory.mktemp("sharded")
    on_one_and_two_ranks(SCRIPT, folder)
    return folder


def test_sharded_weights_move_like_replicated_ones(folder):
    one, two = (load_file(folder / f"weights-{ranks}.safetensors") for ranks in (1, 2))
    initial = tiny_model()[0].state_dict()
    moved = [{name: value - initial[name] for name, value in weights.items()} for weights in (one, two)]
    assert sum(float(value.square().sum()) for value in moved[0].values()) > 1e-3
    assert relative_difference(moved[1], moved[0]) < 1e-5


def test_the_record_is_the_same(folder):
    one, two = (read_json_lines(folder / f"run-{ranks}" / "metrics.jsonl") for ranks in (1, 2))
    assert len(one) == len(two) == 2
    for left, right in zip(two, one, strict=True):
        assert left["terms"]["forget"]["raw"] == pytest.approx(right["terms"]["forget"]["raw"], rel=1e-5)
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-5)
