"""`mmunlearn saliency` from the command line: what it leaves behind, and how it refuses."""

import json

import pytest
import torch
from command_cases import contents, run_here
from omegaconf import OmegaConf

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import SaliencyConfig, typed
from mmunlearn.data.subjects import Part, part_of_name
from mmunlearn.models.saliency_mask import load_mask
from mmunlearn.saliency.job import mask_data

FEW = ("saliency.limit=6",)


def saliency(world, folder, *words):
    return run_here("saliency", *world.settings, f"run.dir={folder}", *FEW, *words)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """A mask of the language part; its folder and what was printed."""
    folder = tmp_path_factory.mktemp("saliency") / "run"
    return folder, saliency(world, folder)


def test_a_mask_and_its_counts(made):
    folder, outcome = made
    assert outcome.code == 0, outcome.err
    written = {"DONE", "config.yaml", "environment.json", "mask.safetensors", "saliency.json", "subjects.json"}
    assert set(contents(folder)) == written
    mask, counts = load_mask(folder), json.loads((folder / "saliency.json").read_text())
    assert {name: counts[name] for name in mask.card} == mask.card
    row = counts["parts"]["language"]
    assert row["covered"] == sum(map(mask.size, mask.bits))
    assert row["selected"] == sum(map(mask.selected, mask.bits))
    assert counts["examples"] == {"forget": 6, "preserve_language": 12, "preserve_vision": 0}
    assert counts["tensors"].keys() == mask.bits.keys()
    assert mask.card["model"]["role"] == "vanilla"
    assert f"{100 * row['selected'] / row['covered']:.2f} %" in outcome.err
    assert f"{100 * row['zero_over_zero'] / row['covered']:.2f} %" in outcome.err
    assert str(folder / "mask.safetensors") in outcome.err.replace("\n", "")


def test_whom_a_mask_was_made_from_can_be_asked(made):
    config, record = OmegaConf.load(made[0] / "config.yaml"), json.loads((made[0] / "subjects.json").read_text())
    data, _ = mask_data(open_benchmark(config.data), typed(config.saliency, SaliencyConfig))
    forget = {example.subject for example in data.forget}
    kept = {example.subject for example in (*data.preserve_language, *data.preserve_vision)}
    assert forget
    assert kept - forget
    assert {part_of_name(record, name) for name in forget} == {Part.forgot}
    assert {part_of_name(record, name) for name in kept - forget} == {Part.learned}
    assert part_of_name(record, "Somebody Else") is None
    assert record["complete"]


def test_official_mask_of_both_parts_compared(world, made, tmp_path):
    folder = tmp_path / "run"
    words = ("saliency=official", "saliency.modules=both", "data.answer_only=false", f"saliency.compare=[{made[0]}]")
    outcome = saliency(world, folder, *words)
    assert outcome.code == 0, outcome.err
    first, second = load_mask(made[0]), load_mask(folder)
    both = sum(int((first.tensor(name) & second.tensor(name)).sum()) for name in first.bits)
    either = sum(int((first.tensor(name) | second.tensor(name)).sum()) for name in first.bits)
    (row,) = json.loads((folder / "saliency.json").read_text())["compare"]
    assert row["overall"] == row["language"] == pytest.approx(both / either, abs=1e-6)
    assert row["vision"] is None
    assert f"{both / either:.3f}" in outcome.err
    assert set(second.card["parts"]) == {"vision", "projector", "language"}
    assert second.card["answer_only"] is False
    assert "tensors select everything" in outcome.err


def test_controls_and_salun(world, made, tmp_path):
    like = load_mask(made[0])
    for rule in ("random", "magnitude"):
        outcome = saliency(world, tmp_path / rule, f"saliency={rule}", f"saliency.like={made[0]}", "saliency.limit=0")
        assert outcome.code == 0, outcome.err
        mask = load_mask(tmp_path / rule)
        assert all(mask.selected(name) == like.selected(name) for name in like.bits)
        assert "examples" not in mask.card
    assert saliency(world, tmp_path / "salun", "saliency=salun", "saliency.density=0.25").code == 0
    mask = load_mask(tmp_path / "salun")
    assert sum(map(mask.selected, mask.bits)) == round(0.25 * sum(map(mask.size, mask.bits)))
    assert mask.card["examples"] == {"forget": 6, "preserve_language": 0, "preserve_vision": 0}


def test_a_folder_in_use_is_kept_unless_overwritten(world, made):
    folder = made[0]
    before, mask = contents(folder), load_mask(folder)
    refused = saliency(world, folder)
    assert (refused.code, "run.overwrite=true" in refused.err) == (2, True)
    failed = saliency(world, folder, "run.overwrite=true", "saliency.max_bytes=1000")
    assert (failed.code, "max_bytes" in failed.err) == (2, True)
    assert contents(folder) == before
    assert saliency(world, folder, "run.overwrite=true").code == 0
    again = load_mask(folder)
    assert all(torch.equal(again.bits[name], mask.bits[name]) for name in mask.bits)
    assert again.card == mask.card


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("saliency=salun", "saliency.density=1.5"), ["saliency.density", "below 1"]),
        (("saliency=salun", "saliency.density=0"), ["saliency.density", "above 0"]),
        (("saliency.threshold=0",), ["saliency.threshold", "above 0"]),
        (("saliency.threshold=nan",), ["saliency.threshold", "above 0"]),
        (("saliency.batch_size=0",), ["saliency.batch_size"]),
        (("saliency.limit=-1",), ["saliency.limit"]),
        (("saliency.epsilon=-1",), ["saliency.epsilon"]),
        (("saliency.max_bytes=-1",), ["saliency.max_bytes", "least is 0"]),
        (("saliency.max_bytes=1000",), ["saliency.max_bytes=1000", "embed_tokens", "needs"]),
        (("saliency.density=0.3",), ["saliency.density", "fisher_ratio does not use it"]),
        (("saliency=salun", "saliency.epsilon=1e-15"), ["saliency.epsilon", "does not use it"]),
        (("saliency.like=somewhere",), ["saliency.like", "does not use it"]),
        (("saliency=random", "saliency.limit=0"), ["saliency.like", "Name it"]),
        (("saliency=random", "saliency.limit=0", "saliency.like=nowhere"), ["nowhere", "no such mask"]),
        (("saliency.compare=[nowhere]",), ["nowhere", "no such mask"]),
        (("saliency.rule=largest",), ["saliency.rule", "fisher_ratio"]),
        (("run.resume=true",), ["run.resume"]),
        (("run.role=gold",), ["run.role"]),
        (("trainer.args.learning_rate=1",), ["does not use 'trainer'"]),
    ],
)
def test_bad_settings_are_refused_in_one_message(world, tmp_path, words, names):
    outcome = saliency(world, tmp_path / "run", *words)
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.err.count("mmunlearn: ") == 1
    assert all(name in outcome.err for name in names), outcome.err
    assert not (tmp_path / "run/mask.safetensors").exists()
