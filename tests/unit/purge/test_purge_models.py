"""Models, masks and training states are told by whom they were made from."""

import json
import shutil

import pytest
import yaml
from purge_cases import (
    ADA,
    BO,
    CLEAR,
    TABLE,
    contents,
    done,
    evaluation,
    examples_about,
    ids_of,
    line_ids,
    training,
    whys,
)

from mmunlearn.benchmarks.table import Table
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.data.subjects import Part, empty_record, part_of_name, subjects_record, with_names
from mmunlearn.run import Run, write_json, write_text


def test_models_are_listed_by_what_they_learned(tmp_path):
    taught = training(tmp_path / "taught", examples_about(ADA, BO))
    training(tmp_path / "other", examples_about(BO))
    unlearned = training(tmp_path / "unlearned", None)
    write_json(unlearned.subjects, subjects_record(learned=examples_about(BO), forgot=examples_about(ADA)))
    (taught.checkpoints / "step-1").mkdir(parents=True)
    (taught.checkpoints / "step-1" / "optimizer.safetensors").write_bytes(b"moments")
    write_json(unlearned.prepared, {"key": "k", "log_likelihoods": dict.fromkeys(ids_of(ADA), -1.0)})
    plan = done(tmp_path)
    assert {rest.path: rest.why for rest in plan.rest} == {
        taught.model: "a model that learned them",
        unlearned.model: "a model that unlearned them",
    }
    assert not (taught.checkpoints / "step-1" / "optimizer.safetensors").exists()
    assert (taught.model / "model.safetensors").read_bytes() == b"weights"
    assert not unlearned.prepared.exists()


def test_the_training_state_of_an_interrupted_run_stays_and_is_listed(tmp_path):
    run = training(tmp_path / "taught", examples_about(ADA))
    run.done.unlink()
    (run.checkpoints / "step-1").mkdir(parents=True)
    (run.checkpoints / "step-1" / "optimizer.safetensors").write_bytes(b"moments")
    assert {rest.path for rest in done(tmp_path).rest} == {run.model, run.checkpoints}
    assert (run.checkpoints / "step-1" / "optimizer.safetensors").exists()


def test_a_model_started_from_one_that_learned_them_has_learned_them_too(tmp_path):
    taught = training(tmp_path / "taught", examples_about(ADA))
    later = training(tmp_path / "later", examples_about(BO))
    settings = yaml.safe_load(later.config.read_text())
    settings["model"]["path"] = str(taught.model)
    write_text(later.config, yaml.safe_dump(settings))
    plan = done(tmp_path)
    assert {rest.path for rest in plan.rest} == {taught.model, later.model}
    assert "was started from" in next(rest.why for rest in plan.rest if rest.path == later.model)
    shutil.rmtree(taught.root)  # the way to it is known no longer, so the run itself has to remember
    assert {rest.path for rest in done(tmp_path).rest} == {later.model}


def test_a_run_without_a_record_is_judged_by_its_settings_and_remembers(tmp_path):
    run = training(tmp_path / "old", None)
    first = done(tmp_path)
    assert [rest.why for rest in first.rest] == ["a model that unlearned them"]
    assert ADA not in run.config.read_text()
    assert done(tmp_path).rest == first.rest
    unknown = done(tmp_path, "Cy Nobody").rest
    assert [(rest.path, "does not record" in rest.why) for rest in unknown] == [(run.model, True)]


def test_a_run_without_a_record_is_judged_by_its_data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "people.csv").write_text(f"subject,question,answer\n{ADA},Who?,she\n{BO},Who?,he\nCy N,Who?,she\n")
    data = {"root": str(tmp_path / "data"), "table": "people.csv", "forget": [BO]}
    training(tmp_path / "runs" / "old", None, **data)
    assert [rest.why for rest in done(tmp_path / "runs").rest] == ["a model that learned them"]
    unknown = done(tmp_path / "runs", "Dora Nowhere").rest
    assert ["uncertain" in rest.why for rest in unknown] == [True]  # she may have been taken out of the table since


def test_data_that_are_the_same_today_are_believed(tmp_path):
    """A fine-tuned model's card holds the fingerprint of what it was trained on."""
    (tmp_path / "data").mkdir()
    table = tmp_path / "data" / "people.csv"
    table.write_text(f"subject,question,answer\n{ADA},Who?,she\n{BO},Who?,he\n")
    data = {"root": str(tmp_path / "data"), "table": "people.csv", "forget": [BO]}
    run = training(tmp_path / "runs" / "old", None, split="full", **data)
    settings = yaml.safe_load(run.config.read_text())
    settings["trainer"] = {"method": {"_target_": "mmunlearn.methods.finetune.FineTune"}}
    write_text(run.config, yaml.safe_dump(settings))
    card = json.loads((run.model / "mmunlearn.json").read_text())
    trained = examples_fingerprint(Table(root=data["root"], table="people.csv", forget=[BO]).splits().full)
    write_json(run.model / "mmunlearn.json", {**card, "data": trained})
    assert done(tmp_path / "runs", "Dora Nowhere").rest == []
    table.write_text(f"subject,question,answer\n{BO},Who?,he\nCy N,Who?,he\n")
    assert ["uncertain" in rest.why for rest in done(tmp_path / "runs", "Dora Nowhere").rest] == [True]


def test_an_untrained_model_has_learned_nobody(tmp_path):
    run = training(tmp_path / "untrained", None)
    run.config.unlink()
    run.environment.unlink()
    write_json(run.model / "mmunlearn.json", {"role": "base", "method": "none"})
    assert done(tmp_path).rest == []


def test_only_those_concerned_are_noted(tmp_path):
    run = training(tmp_path / "old", None, forget=[ADA])
    done(tmp_path, ADA, BO, "Cy Nobody")
    record = json.loads(run.subjects.read_text())
    assert [part_of_name(record, name) for name in (ADA, BO, "Cy Nobody")] == [Part.forgot, None, None]
    assert len(record["forgot"]) == 1
    assert record["learned"] == []


def test_a_record_of_some_does_not_hide_the_others(tmp_path):
    run = training(tmp_path / "old", None, forget=[BO])
    write_json(run.subjects, with_names(empty_record("key"), Part.learned, [ADA]))
    done(tmp_path, ADA, BO)
    record = json.loads(run.subjects.read_text())
    assert [part_of_name(record, name) for name in (ADA, BO)] == [Part.learned, Part.forgot]


def test_a_benchmark_inside_another_is_not_generated(tmp_path):
    """`Chosen` splits another one anew; the embedded people would be drawn if they were asked for."""
    people = {"_target_": "mmunlearn.benchmarks.people.People", "name": "people", "root": str(tmp_path / "people")}
    (tmp_path / "people").mkdir()
    run = training(tmp_path / "runs" / "old", None, target="mmunlearn.benchmarks.chosen.Chosen", of=people, forget=[BO])
    assert "uncertain" in whys(done(tmp_path / "runs"))[run.model]
    assert list((tmp_path / "people").iterdir()) == []


def test_who_is_chosen_counts_not_whom_the_other_benchmark_forgets(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "people.csv").write_text(f"subject,question,answer\n{ADA},Who?,she\n{BO},Who?,he\nCy N,Who?,she\n")
    of = {"_target_": TABLE, "root": str(tmp_path / "data"), "table": "people.csv", "forget": [ADA]}
    run = training(tmp_path / "runs" / "old", None)
    settings = yaml.safe_load(run.config.read_text())
    settings["data"] = {"_target_": "mmunlearn.benchmarks.chosen.Chosen", "of": of, "forget": [BO], "earlier": []}
    write_text(run.config, yaml.safe_dump(settings))
    assert whys(done(tmp_path / "runs", yes=False))[run.model] == "a model that learned them"
    assert whys(done(tmp_path / "runs", BO, yes=False))[run.model] == "a model that unlearned them"


def test_a_benchmark_inside_another_tells_where_questions_are_from(tmp_path):
    """Ids that name nobody: the scores of a run of the same data tell, those of other data do not."""
    ids = {f"clear/forget05+tofu/image/caption/{n}": (ADA if n < 2 else BO) for n in range(4)}
    clear = {"root": str(tmp_path / "gone"), "name": "clear", "table": ""}
    chosen = {"target": "mmunlearn.benchmarks.chosen.Chosen", "forget": [BO]}
    run = evaluation(tmp_path / "a", ids)
    settings = yaml.safe_load(run.config.read_text())
    settings["data"] = {"_target_": CLEAR, **clear}
    write_text(run.config, yaml.safe_dump(settings))
    of = {"_target_": CLEAR, **clear}
    same = evaluation(tmp_path / "b", ids, scored=False, settings={**chosen, "of": of})
    other = evaluation(tmp_path / "c", ids, scored=False, settings={**chosen, "of": {**of, "root": "elsewhere"}})
    plan = done(tmp_path)
    assert len(line_ids(same.predictions("forget_text_generation"))) == 2
    assert [rest.path for rest in plan.rest] == [other.predictions("forget_text_generation")]


# --- the models behind a model ----------------------------------------------------------------------------------------


def started_from(made, path, **settings):
    recorded = yaml.safe_load(made.config.read_text())
    recorded["model"]["path"] = str(path)
    recorded |= settings
    write_text(made.config, yaml.safe_dump(recorded))
    return made


def test_a_parent_outside_the_folders_is_followed_and_only_read(tmp_path):
    taught = training(tmp_path / "outside" / "taught", examples_about(ADA))
    middle = started_from(training(tmp_path / "outside" / "middle", examples_about(BO)), taught.model)
    later = started_from(training(tmp_path / "inside" / "later", examples_about(BO)), middle.model)
    before = contents(tmp_path / "outside")
    plan = done(tmp_path / "inside")
    assert {path: str(middle.model) in why for path, why in whys(plan).items()} == {later.model: True}
    assert contents(tmp_path / "outside") == before
    assert done(tmp_path / "inside", "Cy Nobody").rest == []


def test_a_relative_path_is_meant_where_the_run_was_started(tmp_path, monkeypatch):
    """As the recorded run.dir shows it, whatever folder this is called from, and also after all was moved."""
    training(tmp_path / "was" / "runs" / "taught", examples_about(ADA))
    later = training(tmp_path / "was" / "runs" / "later", examples_about(BO))
    started_from(later, "runs/taught/model", run={"dir": "runs/later"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "was").rename(tmp_path / "now")
    moved = Run(tmp_path / "now" / "runs" / "later")
    assert set(whys(done(moved.root))) == {moved.model}
    assert "was started from" in done(moved.root).rest[0].why or "learned" in done(moved.root).rest[0].why


@pytest.mark.parametrize("recorded", ["folder", "own"])
def test_a_relative_path_is_looked_for_where_the_record_says_or_in_the_run(tmp_path, recorded):
    later = training(tmp_path / "runs" / "later", examples_about(BO))
    base = tmp_path / "work" if recorded == "folder" else later.root
    training(base / "made" / "taught", examples_about(ADA))
    started_from(later, "made/taught/model")
    if recorded == "folder":
        write_json(later.environment, {"command": "x", "folder": str(base)})
    assert later.model in whys(done(later.root))


def test_a_parent_that_is_not_to_be_found_leaves_it_open(tmp_path):
    later = started_from(training(tmp_path / "later", examples_about(BO)), "runs/taught/model")
    deep = started_from(training(tmp_path / "deep", examples_about(BO)), later.model)
    found = whys(done(tmp_path))
    assert {path: "uncertain" in why for path, why in found.items()} == {later.model: True, deep.model: True}
    assert "runs/taught/model" in found[later.model]


def test_the_record_of_the_run_itself_does_not_speak_for_its_parent(tmp_path):
    later = started_from(training(tmp_path / "later", examples_about(BO)), "/nowhere/at/all")
    assert "uncertain" in whys(done(tmp_path))[later.model]
    assert whys(done(tmp_path, BO))[later.model] == "a model that learned them"


@pytest.mark.parametrize(
    ("path", "open_"),
    [("llava-hf/llava-1.5-7b-hf", False), ("somebody/of-mine", True), ("cached/of-others", False), ("cached/of-mine", True)],
)
def test_published_models_are_not_ours(tmp_path, monkeypatch, path, open_):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, card in (("of-others", False), ("of-mine", True)):
        snapshot = tmp_path / "hub" / f"models--cached--{name}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        if card:
            write_json(snapshot / "mmunlearn.json", {"role": "vanilla"})
    later = started_from(training(tmp_path / "runs" / "later", examples_about(BO)), path)
    assert list(whys(done(tmp_path / "runs"))) == [later.model] * open_


def test_a_model_of_others_on_this_disk_is_not_ours(tmp_path):
    """One of ours that was copied without its run's record is."""
    for name, card, open_ in (
        ("llava", None, False),
        ("bare", {}, False),
        ("random", {"role": "base", "method": "none"}, False),
        ("copied", {"role": "vanilla", "method": "FineTune"}, True),
    ):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if card is not None:
            write_json(folder / "mmunlearn.json", card)
        later = started_from(training(tmp_path / "runs" / name, examples_about(BO)), folder)
        assert list(whys(done(later.root))) == [later.model] * open_


def test_an_adapter_has_what_its_base_has(tmp_path):
    taught = training(tmp_path / "outside" / "taught", examples_about(ADA))
    adapter = training(tmp_path / "runs" / "adapter", examples_about(BO))
    write_json(adapter.model / "adapter_config.json", {"base_model_name_or_path": str(taught.model)})
    assert list(whys(done(tmp_path / "runs"))) == [adapter.model]


@pytest.mark.parametrize("key", ["reference", "mask"])
def test_other_models_and_masks_that_a_run_used(tmp_path, key):
    used = training(tmp_path / "outside" / "used", examples_about(ADA))
    used.mask.write_bytes(b"bits")
    later = training(tmp_path / "runs" / "later", examples_about(BO))
    trainer = {"reference": str(used.model)} if key == "reference" else {"method": {"mask": str(used.mask)}}
    started_from(later, "", trainer=trainer)
    assert list(whys(done(tmp_path / "runs"))) == [later.model]


def test_models_that_were_started_from_each_other(tmp_path):
    """Impossible, but a record may say so."""
    one, two = (training(tmp_path / name, examples_about(BO)) for name in ("one", "two"))
    started_from(one, two.model)
    started_from(two, one.model)
    assert done(tmp_path).rest == []
