"""What a sequence writes down of its steps, and what it refuses to go on from."""

import json
import os
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from tiny_cases import tiny_model

from mmunlearn import sequence_record
from mmunlearn.config_check import checked
from mmunlearn.errors import RunError
from mmunlearn.models.load import model_fingerprint, save
from mmunlearn.models.saliency_mask import mask_of, save_mask
from mmunlearn.run import Run, write_json
from mmunlearn.sequence import evaluation_config
from mmunlearn.sequence_record import SequenceFolder, SequenceRecord

EARLIER = {"start": "1" * 16, "forget": "f" * 16}
"""As an earlier version wrote it down."""
FIRST = {**EARLIER, "retain": "e" * 16, "mask": "a" * 16, "reference": "b" * 16}
OTHER = {**FIRST, "start": "2" * 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved model; not to be changed."""
    folder = tmp_path_factory.mktemp("start") / "model"
    save(*tiny_model(), folder, {"role": "vanilla"})
    return folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sequence").mkdir()
    return SequenceFolder(root=tmp_path / "sequence")


def opened(folder, **model):
    """The record as a command reads it."""
    settings = checked(OmegaConf.create({"run": {"dir": str(folder.root)}, "model": {"path": "somewhere", **model}}))
    return SequenceRecord(folder, settings.model)


def step_of(folder, number=1, started="noon"):
    run = folder.step(number)
    run.root.mkdir(exist_ok=True)
    write_json(run.environment, {"started": started})
    run.finish()
    return run


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_are_known_by_their_weights(made, folder, tmp_path):
    model, processor = tiny_model()
    record = opened(folder)
    assert record.model(str(made)) == model_fingerprint(model)
    moved = shutil.copytree(made, tmp_path / "copy")
    assert record.model(str(moved)) == record.model(str(made))
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] += 1
    save(model, processor, moved, {"role": "vanilla"})
    assert record.model(str(moved)) == model_fingerprint(model) != record.model(str(made))


def test_a_model_in_four_bits_is_known_by_what_is_stored(made, folder):
    assert opened(folder, quantise="nf4").model(str(made)) == opened(folder).model(str(made))


def test_what_has_not_changed_is_not_read_again(made, folder, tmp_path, monkeypatch):
    moved = shutil.copytree(made, tmp_path / "copy")
    reads = []
    real = sequence_record.load
    monkeypatch.setattr(sequence_record, "load", lambda *args, **more: reads.append(1) or real(*args, **more))
    record = opened(folder)
    first = record.model(str(moved))
    record.write()
    assert opened(folder).model(str(moved)) == record.model(str(moved)) == first
    assert len(reads) == 1
    assert opened(folder, dtype="bfloat16").model(str(moved)) != first  # other bytes, though nothing on the disk has changed
    os.utime(moved / "config.json", (1, 1))
    assert opened(folder).model(str(moved)) == first
    assert len(reads) == 3


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_of_the_same_model_and_questions_is_kept(folder):
    opened(folder).begin_step(folder.step(1), FIRST)
    opened(folder).check_step(step_of(folder), "start", FIRST)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (OTHER, f"unlearned from the model {'1' * 16}, but start now holds {'2' * 16}"),
        ({**FIRST, "forget": "0" * 16}, "unlearned other questions about these people"),
        ({**FIRST, "retain": "0" * 16}, "was to keep other questions about everybody else"),
        ({**FIRST, "mask": "0" * 16}, r"with another mask than trainer\.method\.mask now holds"),
        ({**FIRST, "reference": "0" * 16}, r"with another reference than trainer\.reference now leads to"),
    ],
)
def test_a_step_of_another_model_or_other_questions_is_refused(now, message, folder):
    opened(folder).begin_step(folder.step(1), FIRST)
    run = step_of(folder)
    with pytest.raises(RunError, match=message) as told:
        opened(folder).check_step(run, "start", now)
    assert str(run.root) in str(told.value)
    assert "another run.dir, or set run.overwrite=true" in str(told.value)
    assert "Nothing was changed" in str(told.value)


def test_a_step_that_was_to_be_replaced_stays_what_it_was_until_it_is(folder):
    """A command that was killed, or refused, before it deleted the step has not made another one of it."""
    record = opened(folder)
    record.begin_step(folder.step(1), FIRST)
    run = step_of(folder)
    for _ in range(2):  # two such attempts
        opened(folder).begin_step(run, OTHER)
    opened(folder).check_step(run, "start", FIRST)
    with pytest.raises(RunError, match="unlearned from the model"):
        opened(folder).check_step(run, "start", OTHER)
    step_of(folder, started="one o'clock")  # now it is replaced
    opened(folder).check_step(run, "start", OTHER)
    with pytest.raises(RunError, match="unlearned from the model"):
        opened(folder).check_step(run, "start", FIRST)


def test_a_step_that_nobody_wrote_down_is_taken_and_written_down(folder, capsys):
    record, run = opened(folder), step_of(folder)
    record.check_step(run, "start", FIRST)
    assert "taken as it is" in " ".join(capsys.readouterr().err.split())
    record.write()
    with pytest.raises(RunError, match="unlearned from the model"):
        opened(folder).check_step(run, "start", OTHER)


def test_a_copy_of_a_step_is_the_same_step(folder, tmp_path):
    """Also where the times of the files are not copied, and a training that was to replace the step never came to be."""
    opened(folder).begin_step(folder.step(1), FIRST)
    run = step_of(folder)
    opened(folder).begin_step(run, OTHER)
    copied = SequenceFolder(root=shutil.copytree(folder.root, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(copied.step(1).done, (1, 1))
    opened(copied).check_step(copied.step(1), "start", FIRST)
    with pytest.raises(RunError, match="unlearned from the model"):
        opened(copied).check_step(copied.step(1), "start", OTHER)


def test_what_an_earlier_version_wrote_down_is_taken_and_completed(folder, capsys):
    run = step_of(folder)
    old = {**EARLIER, "replaces": None, "replaced": None}
    pending = {**OTHER, "replaces": run.done.stat().st_mtime_ns, "replaced": EARLIER}  # by its time
    for entry in (old, pending):
        write_json(folder.record, {"schema": 1, "models": {}, "steps": {"step-1": entry}, "evaluations": {"evaluation-0": "1"}})
        record = opened(folder)
        record.check_step(run, "start", FIRST)
        assert "does not name its retain, mask, reference; it is taken as it is" in " ".join(capsys.readouterr().err.split())
        record.write()
        for name in ("retain", "mask", "reference"):
            with pytest.raises(RunError, match="Nothing was changed"):
                opened(folder).check_step(run, "start", {**FIRST, name: "0" * 16})
        opened(folder).check_step(run, "start", FIRST)
        assert capsys.readouterr().err == ""
        assert "evaluations" not in json.loads(folder.record.read_text())


def test_what_cannot_be_read_any_more_is_not_compared(folder):
    opened(folder).begin_step(folder.step(1), FIRST)
    opened(folder).check_step(step_of(folder), "start", {name: FIRST[name] for name in ("start", "forget", "retain")})


def test_mask_and_reference_are_known_by_content(made, folder, tmp_path, capsys):
    mask, reference = tmp_path / "mask.safetensors", shutil.copytree(made, tmp_path / "reference")
    method = {"_target_": "mmunlearn.methods.mmunlearner.MMUnlearner", "mask": str(mask)}
    sections = {"run": {"dir": "x"}, "model": {"path": str(made)}, "trainer": {"method": method, "reference": str(reference)}}
    config = OmegaConf.create(sections)
    save_mask(mask_of({"w": torch.tensor([True, False])}, {}), mask)
    first = opened(folder).files_of(config, "")
    assert first.keys() == {"mask", "reference"}
    save_mask(mask_of({"w": torch.tensor([True, False])}, {"made": "later"}), mask)
    assert opened(folder).files_of(config, "") == first  # another card, the same bits
    save_mask(mask_of({"w": torch.tensor([False, True])}, {}), mask)
    save(*tiny_model(1), reference, {"role": "gold"})
    second = opened(folder).files_of(config, "")
    assert second["mask"] != first["mask"]
    assert second["reference"] != first["reference"]
    mask.unlink()
    shutil.rmtree(reference)
    assert opened(folder).files_of(config, "") == {}
    told = " ".join(capsys.readouterr().err.split())
    assert "its mask is not compared" in told
    assert "its reference is not compared" in told


def test_the_gold_model_is_found_as_training_finds_it(made, folder):
    gold = folder.root / "gold" / "model"
    save(*tiny_model(1), gold, {"role": "gold", "data": "e" * 16})
    method = {"_target_": "mmunlearn.methods.npo.NPO"}
    sections = {
        "run": {"dir": str(folder.step(1).root)},
        "model": {"path": str(made)},
        "trainer": {"method": method, "reference": "gold"},
    }
    config, record = OmegaConf.create(sections), opened(folder)
    assert record.files_of(config, "e" * 16) == {"reference": record.model(str(gold))}
    assert record.files_of(config, "0" * 16) == {}
    config.trainer.reference = ""
    assert record.files_of(config, "e" * 16) == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 99}'])
def test_a_damaged_record_is_named(content, folder):
    folder.record.write_text(content)
    with pytest.raises(RunError, match=r"sequence\.json: not"):
        opened(folder)


# --- evaluations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_models_are_asked_as_they_are_stored(quantise, tmp_path):
    """Also what was trained on 4 bits: its adapter says so itself."""
    data = {"_target_": "mmunlearn.benchmarks.mllmu.MLLMUBench", "root": "here", "forget_ratio": "5"}
    sections = {"run": {"dir": "x"}, "model": {"path": "base", "quantise": quantise}, "data": data, "evaluation": {}}
    found = evaluation_config(checked(OmegaConf.create(sections)), Run(tmp_path / "e"), "base", ["1"], "")
    assert found.model.quantise == "none"
