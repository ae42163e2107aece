"""`evaluation.devices`: several processes answer what one would have answered, and fail with one message."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter

import pytest
from command_cases import contents, run_here

from mmunlearn.run import read_json_lines

pytestmark = pytest.mark.thorough

ASKED = ("model.dtype=float32", "evaluation.splits=[forget,retain]", "evaluation.limit=9")
TWO = "evaluation.devices=[cpu,cpu]"
NUMBERS = ("answer_log_probs", "vocabulary_means", "option_log_likelihoods", "option_letter_probabilities")


def predicted(world, folder, *words):
    return run_here("predict", *world.settings, *ASKED, *words, f"run.dir={folder}")


def lines_of(folder):
    """By file, the lines by id; none of them twice, and no file of a single process left."""
    found = {}
    for path in sorted((folder / "predictions").iterdir()):
        lines = read_json_lines(path)
        assert set(Counter(line["id"] for line in lines).values()) <= {1}
        found[path.name] = {line["id"]: line for line in lines}
    assert not [name for name in found if ".part-" in name]
    return found


def assert_same_answers(found, expected):
    """Equal but for the last bits, and for texts where the two best tokens were nearly tied; returns how many were."""
    assert found.keys() == expected.keys()
    near_ties = 0
    for name, lines in expected.items():
        assert found[name].keys() == lines.keys()
        for id_, line in lines.items():
            other = found[name][id_]
            for key in NUMBERS:
                assert other[key] == pytest.approx(line[key], abs=1e-4), (id_, key)
            for key in ("prompt", "key", "option_tokens", "settings"):
                assert other[key] == line[key]
            if min(line["smallest_gap"], other["smallest_gap"]) < 1e-4:
                near_ties += 1
            else:
                assert other["text"] == line["text"]
    return near_ties


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    outcome = predicted(world, folder, "evaluation.batch_size=1")
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def together(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together") / "run"
    outcome = predicted(world, folder, "evaluation.batch_size=16", TWO)
    assert outcome.code == 0, outcome.err
    return folder, outcome


def test_processes_and_batch_size_change_no_answer(world, alone, together, tmp_path):
    expected = lines_of(alone)
    assert sum(map(len, expected.values())) > 90
    assert predicted(world, tmp_path, "evaluation.batch_size=16").code == 0
    assert assert_same_answers(lines_of(tmp_path), expected) <= 3
    assert assert_same_answers(lines_of(together[0]), expected) <= 3
    assert "0 of them answered before" in together[1].err


def test_an_evaluation_goes_on_with_another_number_of_processes(world, together, tmp_path):
    """What killed processes left, with a line cut in two, is taken over by one process alone."""
    folder = tmp_path / "run"
    shutil.copytree(together[0], folder)
    for name in ("forget_image_choice", "forget_text_cloze"):
        path = folder / "predictions" / f"{name}.jsonl"
        whole = path.read_bytes().splitlines(keepends=True)
        path.unlink()
        path.with_name(f"{name}.part-77.jsonl").write_bytes(b"".join(whole[:3]))
        path.with_name(f"{name}.part-78.jsonl").write_bytes(b"".join(whole[2:5]) + whole[5][:50])
    outcome = predicted(world, folder)
    assert outcome.code == 0, outcome.err
    total = sum(map(len, lines_of(together[0]).values()))
    missing = sum(len(lines_of(together[0])[f"{name}.jsonl"]) - 5 for name in ("forget_image_choice", "forget_text_cloze"))
    assert f"{total} questions in 12 tasks, {total - missing} of them answered before" in outcome.err
    assert_same_answers(lines_of(folder), lines_of(together[0]))


def kill_one_when_answers_come(folder, killed):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        running = multiprocessing.active_children()
        parts = [part for part in folder.glob("predictions/*.part-*.jsonl") if part.stat().st_size > 0]
        if len(running) == 2 and parts:
            killed.extend(child.pid for child in running)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(parts[0].name.split(".part-")[1].split(".")[0]), signal.SIGKILL)
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_one_process_that_is_killed_ends_all_with_one_message(world, alone, tmp_path):
    folder, pids = tmp_path / "run", []
    killer = threading.Thread(target=kill_one_when_answers_come, args=(folder, pids))
    killer.start()
    outcome = predicted(world, folder, TWO, "evaluation.batch_size=1")
    killer.join()
    assert outcome.code == 2, outcome.err
    said = [line for line in outcome.err.split("mmunlearn: ")[1:] if line]
    assert len(said) == 1
    assert "on cpu: was ended by SIGKILL" in said[0]
    assert "Answers so far are kept" in " ".join(said[0].split())
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    kept = lines_of(folder)
    assert 0 < sum(map(len, kept.values())) < sum(map(len, lines_of(alone).values()))
    again = predicted(world, folder, "evaluation.batch_size=1")
    assert again.code == 0, again.err
    assert assert_same_answers(lines_of(folder), lines_of(alone)) <= 3
    assert all(lines_of(folder)[name][id_] == line for name, lines in kept.items() for id_, line in lines.items())


@pytest.mark.slow
def test_what_a_process_cannot_do_is_said_once(world, tmp_path):
    """The published solved questions do not fit this model's context."""
    words = ("evaluation.protocol=official", "evaluation.shots=few_shot")
    outcome = predicted(world, tmp_path, TWO, *words)
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert said.count("the model allows 320") == 1
    assert said.count("mmunlearn: Process") == 1
    assert "of the evaluation, on cpu: mllmu/" in said
    assert "Traceback" not in said
    assert multiprocessing.active_children() == []


def test_a_gpu_that_is_not_there_is_named_before_anything_is_loaded(world, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr("mmunlearn.evaluation.opened.load", never)
    monkeypatch.setattr("mmunlearn.evaluation.ask.open_benchmark", never)
    outcome = predicted(world, tmp_path / "run", "evaluation.devices=[0,1]")
    assert outcome.code == 2
    assert "evaluation.devices: cuda:0, but torch sees no GPU" in " ".join(outcome.err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_of_another_model_is_refused_and_left_alone(world, together, full_run, tmp_path):
    shutil.copytree(together[0], tmp_path / "run")
    before = contents(tmp_path / "run")
    words = (*world.data, f"model.path={full_run[0] / 'model'}", *ASKED, TWO, f"run.dir={tmp_path / 'run'}")
    outcome = run_here("predict", *words)
    assert outcome.code == 2
    assert "evaluation of another model" in " ".join(outcome.err.split())
    assert contents(tmp_path / "run") == before
    assert multiprocessing.active_children() == []
