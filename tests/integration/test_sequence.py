"""`mmunlearn sequence`: request after request, each from the model before; repeated, it does only what is left."""

import csv
import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_cases import FEW_QUESTIONS, TWO_STEPS, contents, data_settings, run_here
from omegaconf import OmegaConf
from tiny_cases import tiny_model

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.models.load import save
from mmunlearn.run import Run, read_json_lines
from mmunlearn.sequence import _evaluate, asked_now
from mmunlearn.sequence_record import SequenceFolder, SequenceRecord

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="session")
def people(world):
    """Two who are to be forgotten anyway and two who are not, in two requests."""
    splits = world.benchmark().splits()
    forget, retain = (sorted({example.subject for example in side}) for side in (splits.forget, splits.retain))
    return [[forget[0], retain[0]], [retain[1]]]


@pytest.fixture(scope="session")
def sequence(world, people, tmp_path_factory):
    """Words, folder and outcome of two requests, tuned by LoRA."""
    folder = tmp_path_factory.mktemp("sequence") / "run"
    requests = "sequence.requests=[" + ",".join(f"[{','.join(request)}]" for request in people) + "]"
    words = ("sequence", requests, *world.settings, "trainer=grad_diff", *TWO_STEPS, *FEW_QUESTIONS, f"run.dir={folder}")
    outcome = run_here(*words)
    assert outcome.code == 0, outcome.err
    return words, folder, outcome


def test_each_request_starts_from_the_model_before(sequence, world, people):
    folder = sequence[1]
    first, second = (OmegaConf.load(folder / f"step-{number}" / "config.yaml") for number in (1, 2))
    assert first.model.path == str(world.model)
    assert second.model.path == str(folder / "step-1" / "model")
    assert [list(step.data.forget) for step in (first, second)] == people
    assert [list(step.data.earlier) for step in (first, second)] == [[], people[0]]


def test_every_model_is_asked_about_all_requests(sequence, people):
    found = []
    for number in range(3):
        run = sequence[1] / f"evaluation-{number}"
        found.append(json.loads((run / "results.json").read_text())["benchmark"]["questions"])
        assert {line["subject"] for line in read_json_lines(run / "scores" / "forget_image_choice.jsonl")} == {
            *people[0],
            *people[1],
        }
        kept = {line["subject"] for line in read_json_lines(run / "scores" / "retain_image_choice.jsonl")}
        assert not kept & {*people[0], *people[1]}
    assert len(set(found)) == 1


def fingerprint_of(folder):
    return json.loads((folder / "model.json").read_text())["fingerprint"]


def test_what_everything_was_made_from_is_written_down(sequence):
    folder = sequence[1]
    record = json.loads((folder / "sequence.json").read_text())
    asked = [fingerprint_of(folder / f"evaluation-{number}") for number in range(3)]
    assert len(set(asked)) == 3
    for number in (1, 2):
        data = OmegaConf.load(folder / f"step-{number}" / "config.yaml").data
        step = record["steps"][f"step-{number}"]
        assert step["start"] == asked[number - 1]
        splits = open_benchmark(data).splits()
        assert step["forget"] == examples_fingerprint(splits.forget)
        assert step["retain"] == examples_fingerprint(splits.retain)


def test_the_page_judges_the_model_after_the_last_request(sequence):
    """A model that was not asked yet to forget somebody has not failed to; all steps are in the section on the requests."""
    folder = sequence[1]
    asked = [fingerprint_of(folder / f"evaluation-{number}") for number in range(3)]
    rows = json.loads((folder / "report" / "results.json").read_text())
    assert {row["fingerprint"] for row in rows} == {asked[0], asked[2]}
    assert "after request 1" not in (folder / "report" / "tables.csv").read_text()
    page = (folder / "report" / "report.html").read_text()
    assert "Evaluation of after request 2" in page
    assert "Evaluation of after request 1" not in page
    assert "after 1" in page
    assert {row["model"] for row in csv.DictReader((folder / "report" / "course.csv").open())} >= {"after 1"}


def test_the_report(sequence, people):
    folder = sequence[1] / "report"
    rows = list(csv.DictReader((folder / "course.csv").open()))
    assert [(row["group"], row["model"]) for row in rows[:6]] == [
        (f"Request {request}", step) for request in (1, 2) for step in ("before", "after 1", "after 2")
    ]
    assert [row["requested"] for row in rows[:6]] == ["false", "true", "true", "false", "false", "true"]
    assert [int(row["people"]) for row in rows[:6]] == [2, 2, 2, 1, 1, 1]
    page = (folder / "report.html").read_text()
    assert "Request after request" in page
    assert not any(person in page for person in (*people[0], *people[1]) if not person.isdigit())


def test_repeated_it_does_nothing_again(sequence):
    words, folder, _ = sequence
    made = [*folder.glob("step-*/DONE"), *folder.glob("evaluation-*/DONE")]
    before = [path.stat().st_mtime_ns for path in made]
    assert len(made) == 5
    assert run_here(*words, "report.gate_margin=0.31").code == 0
    assert [path.stat().st_mtime_ns for path in made] == before
    assert "0.31; otherwise" in (folder / "report" / "report.html").read_text()


def test_a_start_that_was_replaced_is_named_and_nothing_is_changed(sequence):
    """As if the model that the first step was made from had been another one."""
    words, folder, _ = sequence
    file = folder / "sequence.json"
    whole = file.read_text()
    record = json.loads(whole)
    record["steps"]["step-1"]["start"] = "0" * 16
    file.write_text(json.dumps(record))
    try:
        before = contents(folder)
        outcome = run_here(*words)
        assert outcome.code == 2
        assert f"{folder / 'step-1'} was unlearned from the model {'0' * 16}" in outcome.err
        assert "run.overwrite=true" in outcome.err
        assert "Traceback" not in outcome.err
        assert contents(folder) == before
    finally:
        file.write_text(whole)


@pytest.mark.parametrize("finished", [False, True])
def test_an_evaluation_of_an_earlier_model_is_made_again(finished, sequence, tmp_path):
    """The folder holds what was asked of another model: all of it, or as far as a killed command came."""
    folder, run = SequenceFolder(root=tmp_path), Run(tmp_path / "evaluation-1")
    shutil.copytree(sequence[1] / "evaluation-2", run.root)
    if not finished:
        run.done.unlink()
        run.results.unlink()
    config = OmegaConf.load(sequence[1] / "evaluation-1" / "config.yaml")
    config.run.dir = str(run.root)
    _evaluate(config, SequenceRecord(folder, config.model), asked_now(config, open_benchmark(config.data)))
    expected = contents(sequence[1] / "evaluation-1")
    found = contents(run.root)
    assert {name: found[name] for name in found if name.startswith("scores")} == {
        name: expected[name] for name in expected if name.startswith("scores")
    }
    assert fingerprint_of(run.root) == fingerprint_of(sequence[1] / "evaluation-1")
    assert run.is_done


def edit(path, column, old, new, *, person=None):
    """Another word in a column of a table, in the rows of everybody or of one person."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    changed = 0
    for row in rows:
        if person in (None, row["ID"]):
            text = row[column] if isinstance(row[column], str) else json.dumps(row[column])
            changed += text.count(old)
            row[column] = text.replace(old, new) if isinstance(row[column], str) else json.loads(text.replace(old, new))
    assert changed
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_questions_that_were_corrected_are_not_taken_for_those_before(world, people, tmp_path):
    """A step is refused, an evaluation asks what was changed and is scored again."""
    tables, folder = shutil.copytree(world.people, tmp_path / "people"), tmp_path / "run"
    settings = (*data_settings(tables), f"model.path={world.model}", "trainer=grad_diff", *TWO_STEPS, *FEW_QUESTIONS)
    words = ("sequence", f"sequence.requests=[[{people[1][0]}]]", *settings, "evaluation.limit=12", f"run.dir={folder}")
    assert run_here(*words).code == 0
    before = contents(folder)

    trained = next((tables / "baseline_train_split" / "retain_85").glob("*.parquet"))
    whole = trained.read_bytes()
    edit(trained, "metadata", '"Answer": "', '"Answer": "In truth: ', person=people[0][1])
    outcome = run_here(*words)
    assert outcome.code == 2
    assert f"{folder / 'step-1'} was to keep other questions about everybody else" in " ".join(outcome.err.split())
    assert contents(folder) == before

    trained.write_bytes(whole)
    for name in ("forget_15", "retain_85"):
        edit(
            next((tables / "MLLMU-Bench" / name).glob("*.parquet")),
            "Classification_Task",
            "What is the job",
            "What is the work",
        )
    outcome = run_here(*words)
    assert outcome.code == 0, outcome.err
    after = contents(folder)
    assert after["step-1/DONE"] == before["step-1/DONE"]
    for number in (0, 1):
        lines = [read_json_lines(folder / f"evaluation-{number}" / "predictions" / "retain_image_choice.jsonl")]
        lines.append(
            [
                json.loads(line)
                for line in before[f"evaluation-{number}/predictions/retain_image_choice.jsonl"].split(b"\n")
                if line
            ]
        )
        now, then = ({line["id"]: line["key"] for line in each} for each in lines)
        assert 0 < sum(now[each] == then[each] for each in now) < len(now)  # the others were asked again
        results = [json.loads(each[f"evaluation-{number}/results.json"])["benchmark"]["questions"] for each in (before, after)]
        assert results[0] != results[1]
    made = [path.stat().st_mtime_ns for path in sorted(folder.glob("evaluation-*/DONE"))]
    assert run_here(*words).code == 0
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("evaluation-*/DONE"))] == made


@pytest.mark.slow  # every part of it is tested above; this is all together
def test_after_the_start_model_was_trained_anew(world, people, tmp_path):
    start = shutil.copytree(world.model, tmp_path / "start")
    folder = tmp_path / "run"
    requests = f"sequence.requests=[[{people[1][0]}]]"
    settings = (*world.data, f"model.path={start}", "trainer=grad_diff", *TWO_STEPS, *FEW_QUESTIONS)
    words = ("sequence", requests, *settings, f"run.dir={folder}")
    assert run_here(*words).code == 0
    before, asked = contents(folder), [fingerprint_of(folder / f"evaluation-{number}") for number in (0, 1)]
    save(*tiny_model(1), start, {"role": "vanilla", "method": "none"})
    outcome = run_here(*words)
    assert outcome.code == 2
    assert f"was unlearned from the model {asked[0]}" in outcome.err
    assert contents(folder) == before
    assert run_here(*words, "run.overwrite=true").code == 0
    anew = [fingerprint_of(folder / f"evaluation-{number}") for number in (0, 1)]
    assert not set(anew) & set(asked)
    assert json.loads((folder / "sequence.json").read_text())["steps"]["step-1"]["start"] == anew[0]
    assert run_here(*words).code == 0


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print('held', flush=True); sys.stdin.read()"


def test_a_second_sequence_in_the_same_folder_is_refused(world, people, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    words = ("sequence", f"sequence.requests=[[{people[1][0]}]]", *world.settings, *TWO_STEPS, f"run.dir={folder}")
    command = [sys.executable, "-S", "-c", HOLD, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        outcome = run_here(*words)
        other.stdin.close()
    assert outcome.code == 2
    assert f"{folder} is in use by" in outcome.err
    assert [path.name for path in folder.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.quantise=nf4", "the second request would be unlearned from an adapter"),
        ("report.gate_margin=2", "lies outside 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_trained(setting, message, world, people, tmp_path):
    requests = f"sequence.requests=[[{people[0][0]}],[{people[1][0]}]]"
    outcome = run_here("sequence", requests, *world.settings, setting, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ("[]", "is empty"),
        ("[[a,b],[A]]", "again in request 2"),
        ("[nowhere.txt]", "neither a list of people"),
        ("[[a],[]]", "request 2 names nobody"),
        ("[[Nobody Atall]]", "nobody is called 'Nobody Atall'"),
    ],
)
def test_mistakes(requests, message, world, tmp_path):
    outcome = run_here("sequence", f"sequence.requests={requests}", *world.settings, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()
