"""What several processes do with their questions, their files and their failures, without starting any."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from omegaconf import OmegaConf
from tiny_cases import make_examples

from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.devices import asked_devices
from mmunlearn.evaluation.predict import Asked, merge_parts, open_questions
from mmunlearn.evaluation.processes import _shares
from mmunlearn.metrics.catalog import GENERATION_METRICS
from mmunlearn.run import Run, read_json_lines, write_json_lines

TASK = Task(
    name="forget_image_generation",
    examples=make_examples("asked", 41),
    ask=Ask.generate,
    metrics=GENERATION_METRICS,
    higher_is_better=False,
)


def asked(folder, task=TASK, protocol="fixed"):
    return Asked(task=task, run=Run(folder), model="m", settings={"protocol": protocol})


# --- who answers what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 8, 50])
def test_every_question_goes_to_one_process(processes, tmp_path):
    everything = [asked(tmp_path / "a"), asked(tmp_path / "b", replace(TASK, name="test_image_generation"))]
    shares = _shares(everything, [TASK.examples, TASK.examples[:20]], processes)
    assert len(shares) == processes
    dealt = Counter((folder, task, id_) for share in shares for folder, task, ids in share for id_ in ids)
    assert set(dealt.values()) == {1}
    assert len(dealt) == 61
    first = [len(ids) for share in shares for folder, task, ids in share if folder.endswith("a")]
    assert max(first) - min(first) <= 1


def test_a_question_goes_to_the_same_process_in_every_way(tmp_path):
    """Also where more of them are open in one way than in the other."""
    ways = [asked(tmp_path / "a"), asked(tmp_path / "b", protocol="official")]
    shares = _shares(ways, [TASK.examples, TASK.examples[::3]], 3)
    for share in shares:
        owned = {folder: ids for folder, _, ids in share}
        assert owned[str(tmp_path / "b")] < owned[str(tmp_path / "a")]


def test_a_person_is_not_asked_about_by_one_process_alone(tmp_path):
    """Questions come person by person and kind by kind: every second one would be of one kind."""
    (first, *_), (second, *_) = _shares([asked(tmp_path)], [TASK.examples], 2)
    numbers = sorted(int(id_.split("-")[1]) for id_ in first[2])
    assert 5 < sum(number % 2 for number in numbers) < 16
    assert len(first[2]) + len(second[2]) == 41


# --- the files of single processes ------------------------------------------------------------------------------------


def answers(examples, way, text="!"):
    return [{"id": e.id, "prompt": "?", "text": text, "key": way.key(e), "settings": {}} for e in examples]


def test_what_killed_processes_left_is_merged_once(tmp_path):
    way = asked(tmp_path)
    run, lines = way.run, answers(TASK.examples, way)
    write_json_lines(run.predictions(TASK.name), lines[:10])
    write_json_lines(run.predictions_part(TASK.name, 11), lines[5:20])
    write_json_lines(run.predictions_part(TASK.name, 4242), lines[18:25])
    with run.predictions_part(TASK.name, 4242).open("a") as file:
        file.write(json.dumps(lines[30])[:40])  # cut off by the kill
    other = run.predictions_part(f"{TASK.name}_more", 11)
    write_json_lines(other, lines[:3])
    found = open_questions(way)
    assert [example.id for example in found] == [example.id for example in TASK.examples[25:]]
    assert read_json_lines(run.predictions(TASK.name)) == lines[:25]
    assert sorted(path.name for path in run.predictions(TASK.name).parent.iterdir()) == [
        f"{TASK.name}.jsonl",
        other.name,
    ]


def test_a_merge_that_was_killed_before_the_parts_were_deleted_is_repeated(tmp_path):
    way = asked(tmp_path)
    lines = answers(TASK.examples, way)
    random.Random(0).shuffle(lines)
    write_json_lines(way.run.predictions(TASK.name), lines)
    write_json_lines(way.run.predictions_part(TASK.name, 1), lines[20:])
    merge_parts(way.run, TASK.name)
    assert read_json_lines(way.run.predictions(TASK.name)) == lines
    assert way.run.prediction_parts(TASK.name) == []


def test_answers_of_another_model_in_a_part_are_dropped(tmp_path):
    way = asked(tmp_path)
    stale = answers(TASK.examples[:4], replace(way, model="another"), "stale")
    write_json_lines(way.run.predictions_part(TASK.name, 1), stale)
    write_json_lines(way.run.predictions_part(TASK.name, 2), answers(TASK.examples[2:6], way))
    assert [example.id for example in open_questions(way)] == [e.id for e in TASK.examples[:2] + TASK.examples[6:]]
    assert {line["text"] for line in read_json_lines(way.run.predictions(TASK.name))} == {"!"}


# --- devices ----------------------------------------------------------------------------------------------------------


def config(devices, device="auto"):
    return OmegaConf.create({"run": {"device": device}, "evaluation": {"devices": devices}})


@pytest.fixture
def gpus(monkeypatch):
    """So many GPUs as it is called with."""

    def make(count):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return make


def test_numbers_are_gpus(gpus):
    gpus(4)
    assert [str(each) for each in asked_devices(config(["0", "1", "3"]))] == ["cuda:0", "cuda:1", "cuda:3"]
    assert [str(each) for each in asked_devices(config([1, "cuda:2", "cpu"]))] == ["cuda:1", "cuda:2", "cpu"]
    assert [str(each) for each in asked_devices(config(["cpu", "cpu"]))] == ["cpu", "cpu"]


def test_without_devices_it_is_the_device_of_the_run(gpus):
    gpus(0)
    assert [str(each) for each in asked_devices(config([]))] == ["cpu"]
    gpus(2)
    assert [str(each) for each in asked_devices(config([], "cuda:1"))] == ["cuda:1"]


@pytest.mark.parametrize(
    ("devices", "device", "count", "message"),
    [
        (["0", "1"], "auto", 0, r"evaluation\.devices: cuda:0, but torch sees no GPU"),
        (["0", "4"], "auto", 4, r"evaluation\.devices: cuda:4, but torch sees 4 GPUs, counted from 0"),
        (["cpu", "tpu"], "auto", 4, r"evaluation\.devices: 'tpu' is unknown"),
        (["auto"], "auto", 4, r"evaluation\.devices: name each device"),
        (["cpu", "cpu"], "cpu", 0, r"evaluation\.devices=\[cpu,cpu\] and run\.device=cpu: choose one"),
    ],
)
def test_devices_that_are_refused(devices, device, count, message, gpus):
    gpus(count)
    with pytest.raises(ConfigError, match=message):
        asked_devices(config(devices, device))
