"""Two processes over gloo give the gradient of one process, whatever each of them got to see."""

import sys
from pathlib import Path

import pytest
import torch
from launching import all_end_well, free_port, start
from safetensors.torch import load_file
from tiny_cases import flat, random_mask, relative_difference

from mmunlearn.run import read_json_lines

pytestmark = pytest.mark.thorough
SCRIPT = Path(__file__).with_name("two_ranks.py")
CASES = (
    "mixed",
    "accumulated",
    "images-on-one-rank",
    "empty-micro-batch",
    "empty-rank",
    "text-only",
    "adapters",
    "clipped",
    "npo",
    "kl",
    "alternating",
    "masked-forget",
    "masked-update",
    "masked-adapters",
    "clipped-before-mask",
    "momentum",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and two ranks made of every case, by name of the written file."""
    folder = tmp_path_factory.mktemp("ranks")
    all_end_well([start([sys.executable, str(SCRIPT), str(folder), str(free_port())])])
    found = {}
    for name in ("rank-0-of-1", "rank-0-of-2", "rank-1-of-2"):
        for key, value in load_file(folder / f"{name}.safetensors").items():
            case, parameter = key.split("/", 1)
            found.setdefault((name, case), {})[parameter] = value
    return folder, found


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_what_one_process_gives(case, results):
    _, found = results
    expected = found["rank-0-of-1", case]
    assert flat(expected).norm() > 1e-3
    assert relative_difference(found["rank-0-of-2", case], expected) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_bit_for_bit(case, results):
    """Otherwise their weights would drift apart."""
    _, found = results
    first, second = found["rank-0-of-2", case], found["rank-1-of-2", case]
    assert flat(first).equal(flat(second))


@pytest.mark.parametrize("name", ["rank-0-of-1", "rank-0-of-2", "rank-1-of-2"])
def test_nothing_passes_outside_the_mask_on_any_rank(name, results, pristine):
    _, found = results
    mask = random_mask(pristine[0])
    zero = {}
    for case, step in (("masked-update", 0), ("masked-forget", 0), ("clipped-before-mask", 0), ("clipped-before-mask", 1)):
        own = {key.split("/", 1)[1]: value for key, value in found[name, case].items() if key.startswith(f"{step}/")}
        outside = flat({key: value[~mask.tensor(key)] for key, value in own.items()})
        zero[case, step] = bool((outside == 0).all())
    assert zero == {
        ("masked-update", 0): True,
        ("masked-forget", 0): False,  # the retain term is not masked
        ("clipped-before-mask", 0): True,
        ("clipped-before-mask", 1): False,
    }


@pytest.mark.parametrize("case", ["mixed", "empty-rank", "momentum", "npo", "alternating", "clipped-before-mask"])
def test_the_record_is_written_once_and_holds_the_sums_of_all_ranks(case, results):
    folder, _ = results
    one, two = (read_json_lines(folder / f"{case}-{ranks}" / "metrics.jsonl") for ranks in (1, 2))
    assert [line["step"] for line in two] == [line["step"] for line in one] == list(range(1, len(one) + 1))
    for left, right in zip(two, one, strict=True):
        for term, values in right["terms"].items():
            assert left["terms"][term] == pytest.approx(values, rel=1e-5)
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-5)
        assert left["retain_loss"] == pytest.approx(right["retain_loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["rank-0-of-1", "rank-0-of-2", "rank-1-of-2"])
def test_twenty_steps_of_adamw_move_nothing_outside_a_strict_mask(name, results):
    _, found = results
    strict = found[name, "strict"]
    updates = {key: value for key, value in strict.items() if not key.startswith("mask of ")}
    outside = torch.cat([value[~strict[f"mask of {key}"]].flatten() for key, value in updates.items()])
    inside = torch.cat([value[strict[f"mask of {key}"]].flatten() for key, value in updates.items()])
    assert len(outside) > 10_000
    assert outside.count_nonzero() == 0
    assert inside.count_nonzero() > 0.5 * len(inside)


def test_ranks_agree_on_the_weights_after_a_strict_run(results):
    _, found = results
    first, second = found["rank-0-of-2", "strict"], found["rank-1-of-2", "strict"]
    assert all(torch.equal(first[key], second[key]) for key in first)
