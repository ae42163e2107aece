"""`mmunlearn purge` on folders written by hand, with the project's own writers; whole commands are in test_own_people.py."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mmunlearn.config import PurgeConfig
from mmunlearn.data.example import Example, Prediction
from mmunlearn.data.subjects import Part, empty_record, part_of_name, subjects_record, with_names
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.purge import files
from mmunlearn.purge.job import purge
from mmunlearn.purge.people import PURGED, People, subjects_in_id
from mmunlearn.purge.plan import make_plan
from mmunlearn.purge.scan import scan
from mmunlearn.run import Run, read_json_lines, write_json, write_json_lines, write_text

ADA, BO = "Ada Example", "Bo Sample"
TABLE = "mmunlearn.benchmarks.table.Table"
MLLMU = "mmunlearn.benchmarks.mllmu.MLLMUBench"
CLEAR = "mmunlearn.benchmarks.clear.CLEAR"


def ids_of(name, count=3):
    return [f"table/{name}/text/generation/{number:04}" for number in range(count)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def write_settings(run, target=TABLE, **data):
    command = f"mmunlearn evaluate 'data.forget=[{ADA}]'"
    section = {"_target_": target, "name": "table", "root": "", "table": "nowhere.csv", "forget": [ADA, BO], **data}
    write_text(run.config, yaml.safe_dump({"run": {"dir": str(run.root), "label": ""}, "data": section, "model": {"path": ""}}))
    write_json(run.environment, {"command": command, "python": "3"})


def evaluation(folder, subjects, *, fingerprint="f1", scored=True, settings=None, task="forget_text_generation"):
    """A finished evaluation; `subjects` by example id."""
    run = Run(folder)
    write_settings(run, **(settings or {}))
    write_json(run.model_card, {"fingerprint": fingerprint, "role": "base", "label": f"without {ADA}"})
    answers = [Prediction(id=each, prompt=f"Who? {n}", text="a baker").to_json() for n, each in enumerate(subjects)]
    write_json_lines(run.predictions(task), answers)
    write_json_lines(run.judged(task), ({"id": each, "correct": True} for each in subjects))
    if scored:
        lines = ({"id": each, "subject": name, "metrics": {"rougeL": 0.5}} for each, name in subjects.items())
        write_json_lines(run.scores(task), lines)
        write_json(run.results, {"schema": 1, "benchmark": {}, "model": {}, "tasks": {}})
        run.finish()
    return run


def both(count=3):
    return {each: name for name in (ADA, BO) for each in ids_of(name, count)}


def training(folder, examples, **settings):
    run = Run(folder)
    write_settings(run, **settings)
    write_json(run.model / "mmunlearn.json", {"role": "vanilla", "method": "FineTune"})
    (run.model / "model.safetensors").write_bytes(b"weights")
    if examples is not None:
        write_json(run.subjects, subjects_record(learned=examples, forgot=()))
    run.finish()
    return run


def examples_about(*names):
    return [Example(id=f"table/{name}/text/0", question="Who?", answer="x", subject=name) for name in names]


def done(folder, *names, yes=True):
    return purge(PurgeConfig(subjects=list(names or [ADA]), folders=[str(folder)], yes=yes))


def line_ids(path):
    return [line["id"] for line in read_json_lines(path)]


# --- whom a line is about ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example_id", "name", "own"),
    [
        ("table/Ada Example/text/cloze/00ff", ADA, True),
        ("table/Ada Example/image/00ff", "  ada   EXAMPLE ", True),
        ("table/Ada Example Jr/image/00ff", ADA, False),
        ("table/Ada/Example/text/00ff", "Ada/Example", True),
        ("people/forget_15/006/image/choice/0", "006", True),
        ("people/Test_Set/006/image/choice/0", "006", True),
        ("people/Retain_Set/006/image/choice/0", "006", False),
        ("people/Retain_Set/006/image/choice/0", "real-006", True),
        ("people/public_figures/006/text/0", "real-006", True),
        ("people/Holdout_Set/006/text/0", "holdout-006", True),
        ("people/forget_15/006/image/choice/0", "real-006", False),
        ("people/forget_15/006/image/choice/0", "0", False),
        ("clear/forget05+tofu/image/caption/3", ADA, False),
    ],
)
def test_ids_say_whom_they_are_about(example_id, name, own):
    assert People([name]).own(example_id, {}) is own
    assert (People([name]).has(next(iter(subjects_in_id(example_id)))) or own) is own


def test_what_scores_say_stands_against_what_an_id_looks_like():
    assert People([ADA]).own("clear/forget05/image/caption/3", {"clear/forget05/image/caption/3": "ADA EXAMPLE"})
    assert not People(["006"]).own("people/forget_15/006/image/0", {"people/forget_15/006/image/0": "007"})


@pytest.mark.parametrize(
    ("stem", "name", "own"),
    [
        ("table_Ada Example_image_00ff", ADA, True),
        ("table_Not Ada Example_image_00ff", ADA, False),
        ("people_forget_15_006_image_0", "006", True),
        ("people_Retain_Set_006_image_0", "006", False),
        ("people_Retain_Set_006_image_0", "real-006", True),
        ("people_forget_15_006_image_0", "real-006", False),
        ("people_forget_15_1006_image_0", "006", False),
    ],
)
def test_pictures_are_told_by_their_names(stem, name, own):
    assert People([name]).own_picture(stem) is own


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("This is Ada Example.", True),
        ("this is ada\n  EXAMPLE", True),
        ("Ada Examples", False),
        ("Áda Exámple", True),
        ("Ada", False),
        ("", False),
    ],
)
def test_names_in_texts(text, named):
    people = People([ADA])
    assert people.named_in(text) is named
    assert not people.named_in(people.without_names(text))
    assert (people.without_names(text) == text) is not named


def test_numbers_and_very_short_names_are_not_looked_for_in_texts():
    people = People(["006", "Bo"])
    assert not people.named_in("006 and Bo")
    assert people.has("Bo")
    assert people.has("006")
    assert People(["José"]).without_names("a José, b") == f"a {PURGED}, b"


def test_nobody_is_an_error(tmp_path):
    for names in ([], [" "]):
        with pytest.raises(ConfigError, match=r"purge\.subjects is empty"):
            purge(PurgeConfig(subjects=names, folders=[str(tmp_path)]))
    for folders in ([], [str(tmp_path / "gone")]):
        with pytest.raises(ConfigError, match=r"purge\.folders"):
            purge(PurgeConfig(subjects=[ADA], folders=folders))


# --- the record of subjects -------------------------------------------------------------------------------------------


def test_a_record_answers_for_a_name_and_shows_none():
    record = subjects_record(learned=examples_about(ADA), forgot=examples_about("Zoë Nu"))
    assert part_of_name(record, " ada  example") is Part.learned
    assert part_of_name(record, "Zoe\u0308 Nu") is Part.forgot  # accents in another form
    assert part_of_name(record, BO) is None
    assert ADA not in json.dumps(record)
    assert record["complete"]


def test_the_same_person_has_other_hashes_in_other_data():
    first, second = (subjects_record(learned=examples_about(*names), forgot=()) for names in ((ADA,), (ADA, BO)))
    assert not set(first["learned"]) & set(second["learned"])


def test_a_record_can_be_completed():
    record = with_names(empty_record("key"), Part.forgot, [ADA])
    assert part_of_name(record, ADA) is Part.forgot
    assert not record["complete"]
    assert with_names(record, Part.forgot, [ADA]) == record


# --- answers, scores, numbers, settings -------------------------------------------------------------------------------


def test_everything_about_a_person_goes_and_all_else_stays(tmp_path):
    run = evaluation(tmp_path / "after", both())
    plan = done(tmp_path)
    for path in (run.predictions, run.judged, run.scores):
        assert line_ids(path("forget_text_generation")) == ids_of(BO)
    assert not run.results.exists()
    assert not run.is_done
    assert yaml.safe_load(run.config.read_text())["data"]["forget"] == [BO]
    assert json.loads(run.environment.read_text())["command"] == f"mmunlearn evaluate 'data.forget=[{PURGED}]'"
    assert not any(b"Ada Example" in content or b"ada" in content.lower() for content in contents(tmp_path).values())
    assert plan.rest == []


def test_without_yes_nothing_changes_and_the_same_is_said(tmp_path, capsys):
    evaluation(tmp_path / "after", both())
    before = contents(tmp_path)
    plan = done(tmp_path, yes=False)
    assert contents(tmp_path) == before
    said = capsys.readouterr().out
    assert "Nothing has been changed" in said
    assert ADA not in said
    assert {step.count for step in plan.steps if "lines" in step.what} == {3}
    assert [(s.path, s.what, s.count) for s in done(tmp_path).steps] == [(s.path, s.what, s.count) for s in plan.steps]


def test_twice_is_once(tmp_path):
    evaluation(tmp_path / "after", both())
    training(tmp_path / "taught", examples_about(ADA, BO))
    first = done(tmp_path)
    after = contents(tmp_path)
    second = done(tmp_path)
    assert second.steps == []
    assert second.rest == first.rest != []
    assert contents(tmp_path) == after


def test_somebody_else_is_left_alone(tmp_path):
    evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)}, settings={"forget": [BO]})
    before = contents(tmp_path)
    assert done(tmp_path, "Cy Nobody").steps == []
    assert contents(tmp_path) == before


def test_lines_about_others_that_name_the_person_go_too(tmp_path):
    run = evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)})
    path = run.predictions("forget_text_generation")
    lines = read_json_lines(path)
    lines[1]["text"] = "He is ada example!"
    write_json_lines(path, lines)
    plan = done(tmp_path)
    assert line_ids(path) == [ids_of(BO)[0], ids_of(BO)[2]]
    assert any("1 of them about others but with the name" in step.what for step in plan.steps)
    assert not run.results.exists()


@pytest.mark.parametrize("stop", range(11))
def test_a_purge_that_was_killed_can_be_repeated(tmp_path, stop):
    """CLEAR's ids name nobody, so that all depends on the scores being the last to go."""
    ids = {f"clear/forget05+tofu/image/caption/{n}": (ADA if n < 2 else BO) for n in range(4)}
    run = evaluation(tmp_path / "after", ids, settings={"target": CLEAR, "root": "gone"})
    report = Run(tmp_path / "page")
    write_json(report.results, [{"fingerprint": "f1", "value": 0.5}])
    write_text(report.report, "<p>0.5</p>")
    whole = tmp_path.parent / f"{tmp_path.name}-whole"
    shutil.copytree(tmp_path, whole)
    plan = make_plan(scan([str(tmp_path)]), People([ADA]))
    assert len(plan.steps) == 10
    for step in plan.steps[:stop]:
        step.act()
    done(tmp_path)
    done(whole)
    assert {name: content for name, content in contents(tmp_path).items() if name != "after/config.yaml"} == {
        name: content for name, content in contents(whole).items() if name != "after/config.yaml"
    }
    assert line_ids(run.predictions("forget_text_generation")) == [each for each, name in ids.items() if name == BO]
    assert not report.report.exists()


def test_ids_without_names_are_found_by_the_scores_of_another_run_of_the_same_data_only(tmp_path):
    ids = {f"clear/forget05+tofu/image/caption/{n}": (ADA if n < 2 else BO) for n in range(4)}
    settings = {"target": CLEAR, "root": str(tmp_path / "gone")}
    evaluation(tmp_path / "a", ids, settings=settings)
    unscored = evaluation(tmp_path / "b", ids, scored=False, settings=settings)
    elsewhere = evaluation(tmp_path / "c", ids, scored=False, settings={**settings, "root": str(tmp_path / "other")})
    plan = done(tmp_path)
    assert len(line_ids(unscored.predictions("forget_text_generation"))) == 2
    assert len(line_ids(elsewhere.predictions("forget_text_generation"))) == 4
    assert [(rest.path, "does not say whom 4" in rest.why) for rest in plan.rest] == [
        (elsewhere.predictions("forget_text_generation"), True)
    ]


def test_a_damaged_file_is_listed_and_the_others_are_cleaned(tmp_path):
    run = evaluation(tmp_path / "after", both())
    run.judged("forget_text_generation").write_text("{broken\n{}\n")
    plan = done(tmp_path)
    assert [rest.path for rest in plan.rest] == [run.judged("forget_text_generation")]
    assert line_ids(run.predictions("forget_text_generation")) == ids_of(BO)


def test_half_a_line_that_a_kill_left_goes(tmp_path):
    run = evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)})
    part = run.predictions_part("forget_text_generation", 77)
    for content in (
        f'{{"id": "{ids_of(BO)[0]}"}}\n{{"id": "x", "prompt": "Who is {ADA[:6]}',
        f'{{"id": "{ids_of(ADA)[0]}"}}\n',
    ):
        part.write_text(content)
        done(tmp_path)
        assert ADA[:3] not in part.read_text()
    assert line_ids(run.predictions("forget_text_generation")) == ids_of(BO)


def test_half_a_line_does_not_cost_the_numbers(tmp_path):
    run = evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)})
    with run.judged("forget_text_generation").open("ab") as file:
        file.write('{"id": "é'.encode()[:-1])
    done(tmp_path)
    assert run.is_done
    assert run.judged("forget_text_generation").read_bytes().endswith(b"}\n")


def test_a_number_among_those_to_be_forgotten(tmp_path):
    run = evaluation(tmp_path / "after", {"table/7/text/0": "7", "table/8/text/0": "8"}, settings={"forget": [7, 8]})
    done(tmp_path, "7")
    assert yaml.safe_load(run.config.read_text())["data"]["forget"] == [8]
    assert line_ids(run.scores("forget_text_generation")) == ["table/8/text/0"]


# --- reports and probes -----------------------------------------------------------------------------------------------


def test_a_report_goes_with_the_evaluations_that_it_is_made_from(tmp_path):
    evaluation(tmp_path / "with", both(), fingerprint="f1")
    evaluation(tmp_path / "without", {each: BO for each in ids_of(BO)}, fingerprint="f2")
    pages = {}
    for name, made_of in (("one", ["f1", "f2"]), ("two", ["f2"]), ("three", ["f2", "f9"])):
        pages[name] = Run(tmp_path / name)
        write_json(pages[name].results, [{"fingerprint": each, "value": 0.5} for each in made_of])
        write_text(pages[name].report, "<p>0.5</p>")
        write_text(pages[name].tables("csv"), "0.5")
    plan = done(tmp_path)
    left = {name: sorted(path.name for path in page.root.iterdir()) for name, page in pages.items()}
    whole = ["report.html", "results.json", "tables.csv"]
    assert left == {"one": [], "two": whole, "three": whole}
    assert [rest.path for rest in plan.rest] == [pages["three"].results]
    assert "1 evaluations that are not in these folders" in plan.rest[0].why


@pytest.mark.parametrize(("name", "written"), [(ADA, ADA), ("Nu O'Example", "Nu O&#39;Example")])
def test_a_page_that_names_the_person_goes(tmp_path, name, written):
    page = Run(tmp_path / "page")
    write_json(page.results, [{"fingerprint": "f9", "value": 0.5}])
    write_text(page.report, f"<p>{written}</p>")
    done(tmp_path, name)
    assert not page.report.exists()


def test_a_probe_goes_with_its_answers(tmp_path):
    run = evaluation(tmp_path / "probe", both())
    write_json(run.probe, {"people": [{"person": "person 1"}]})
    done(tmp_path)
    assert not run.probe.exists()


def test_an_evaluation_by_several_rules(tmp_path):
    above = Run(tmp_path / "all")
    write_settings(above)
    above.finish()
    below = above.under("official", "zero_shot")
    answers = evaluation(below.root, both())
    below.config.unlink()
    plan = done(tmp_path)
    assert not above.is_done
    assert line_ids(answers.scores("forget_text_generation")) == ids_of(BO)
    assert plan.rest == []


# --- models -----------------------------------------------------------------------------------------------------------


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
    assert done(tmp_path / "runs", "Dora Nowhere").rest == []


def test_an_untrained_model_has_learned_nobody(tmp_path):
    run = training(tmp_path / "untrained", None)
    run.config.unlink()
    run.environment.unlink()
    write_json(run.model / "mmunlearn.json", {"role": "base", "method": "none"})
    assert done(tmp_path).rest == []


# --- what is not the program's ----------------------------------------------------------------------------------------


def test_files_of_others_are_listed_and_never_touched(tmp_path):
    evaluation(tmp_path / "after", both())
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.jsonl").write_text(json.dumps({"id": ids_of(ADA)[0], "text": ADA}) + "\n")
    (tmp_path / "notes.txt").write_text(f"ask {ADA}")
    (tmp_path / "after" / "notes.txt").write_text("nothing")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"ID": ["001", "006"], "text": ["x", "y"]}), tmp_path / "set" / "a.parquet")
    mine = {name: content for name, content in contents(tmp_path).items() if not name.startswith("after/")}
    plan = done(tmp_path, ADA, "006")
    assert {str(rest.path.relative_to(tmp_path)) for rest in plan.rest} == {"predictions/mine.jsonl", "notes.txt", "set"}
    assert {name: content for name, content in contents(tmp_path).items() if not name.startswith("after/")} == mine
    assert (tmp_path / "after" / "notes.txt").exists()


def test_links_are_not_followed(tmp_path):
    outside = evaluation(tmp_path / "outside", both())
    inside = tmp_path / "inside"
    own = evaluation(inside / "own", both())
    before = contents(tmp_path / "outside")
    (inside / "linked").symlink_to(outside.root, target_is_directory=True)
    (inside / "again").symlink_to(own.root, target_is_directory=True)
    path = own.predictions("retain_text_generation")
    path.symlink_to(outside.predictions("forget_text_generation"))
    shutil.rmtree(own.root / "judged")
    (own.root / "judged").symlink_to(outside.root / "judged", target_is_directory=True)
    plan = done(inside)
    assert contents(tmp_path / "outside") == before
    assert {rest.path for rest in plan.rest} == {inside / "linked", path, own.root / "judged"}
    assert line_ids(own.scores("forget_text_generation")) == ids_of(BO)


def test_pictures_trackers_and_leftovers(tmp_path):
    run = evaluation(tmp_path / "after", both())
    for name in (ADA, BO):
        write_text(run.root / "inspect" / f"table_{name}_image_00ff.png", "x")
        write_text(run.trackers / f"events.{len(name)}", f"\x00\xff settings: {name}")
    (run.root / "predictions" / ".forget_text_generation.jsonl.x1").write_text("half a li")
    (run.root / ".results.json.x2").write_text("{")
    done(tmp_path)
    assert [path.name for path in (run.root / "inspect").iterdir()] == [f"table_{BO}_image_00ff.png"]
    assert [path.name for path in run.trackers.iterdir()] == [f"events.{len(BO)}"]
    assert not [path for path in run.root.rglob(".*")]


def test_a_folder_named_after_the_person_is_listed(tmp_path):
    run = evaluation(tmp_path / "forget-ada-example", {each: BO for each in ids_of(BO)})
    assert [(rest.path, rest.remedy) for rest in done(tmp_path).rest] == [(run.root, "Rename it.")]


def test_a_file_that_cannot_be_written_stops_the_purge_with_what_tells_still_there(tmp_path, monkeypatch):
    run = evaluation(tmp_path / "after", both())

    def full(path, records):
        raise RunError(f"{path}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json_lines", full)
        with pytest.raises(RunError, match="no space left"):
            done(tmp_path)
    assert line_ids(run.scores("forget_text_generation")) == [*ids_of(ADA), *ids_of(BO)]
    assert done(tmp_path).rest == []
    assert line_ids(run.predictions("forget_text_generation")) == ids_of(BO)


def test_folders_inside_each_other_are_looked_through_once(tmp_path):
    evaluation(tmp_path / "a" / "after", both())
    plan = purge(PurgeConfig(subjects=[ADA], folders=[str(tmp_path), str(tmp_path / "a"), os.path.relpath(tmp_path)]))
    assert len(plan.steps) == len({step.path.resolve() for step in plan.steps})
    assert len(plan.steps) == 8
