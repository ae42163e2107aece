"""Every verb through the real command line, on an untrained model and a few fictitious people."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_cases import (
    FEW_QUESTIONS,
    TWO_STEPS,
    command_environment,
    contents,
    data_settings,
    run_command,
    run_here,
)
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmunlearn
from mmunlearn.api import EvaluationSettings
from mmunlearn.benchmarks.people_files import BENCHMARK_FOLDER
from mmunlearn.cli import VERBS
from mmunlearn.config import ModelConfig, PartTuning, TrainerArgs, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example, image_file
from mmunlearn.errors import RunError
from mmunlearn.evaluation.asker import Asker
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.models.load import load
from mmunlearn.training.job import Settings

PARTS = {"vision", "projector", "language"}
ADAPTER = "model/adapter_model.safetensors"


def steps_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def card_of(folder):
    return json.loads((folder / "model" / "mmunlearn.json").read_text())


def assert_ran(outcome):
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.out + outcome.err


# --- training --------------------------------------------------------------------------------------------------------


def test_train_py_with_the_default_configuration(lora_run):
    folder, outcome = lora_run
    assert_ran(outcome)
    kept = {"DONE", "config.yaml", "environment.json", "metrics.jsonl", "model", "subjects.json"}
    assert {path.name for path in folder.iterdir()} == kept
    assert card_of(folder) == {"role": "unlearned", "method": "GradAscent", "seed": 0, "goal": "erase"}
    assert (folder / ADAPTER).is_file()
    assert "train.py --config-name default" in json.loads((folder / "environment.json").read_text())["command"]


def test_lora_record_names_terms_retain_loss_and_the_tuned_part(lora_run):
    steps = steps_of(lora_run[0])
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        forget = step["terms"]["forget"]
        assert step["terms"].keys() == {"forget"}
        assert forget["weighted"] == -forget["raw"] < 0
        assert step["retain_loss"] > 0  # watched, although the method has no retain term
        assert step["gradient_norm"].keys() == step["learning_rate"].keys() == {"language"}
        assert step["gradient_norm"]["language"] > 0


def test_unlearn_with_all_parts_tuned(full_run, world):
    folder, outcome = full_run
    assert_ran(outcome)
    assert card_of(folder)["method"] == "GradDiff"
    before, after = load_file(world.model / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("vision_tower", "multi_modal_projector", "lm_head"):
        assert any(part in name for name in moved)


def test_full_record_has_every_part(full_run):
    for step in steps_of(full_run[0]):
        assert step["terms"].keys() == {"forget", "retain"}
        assert step["gradient_norm"].keys() == step["learning_rate"].keys() == PARTS
        assert all(norm > 0 for norm in step["gradient_norm"].values())


def test_grad_diff_says_in_one_line_that_deepspeed_is_not_used(full_run):
    lines = [line for line in full_run[1].err.splitlines() if "deepspeed" in line.lower()]
    assert len(lines) == 1
    assert "zero3.json" in lines[0]
    assert "no GPU" in lines[0]
    assert lines[0].endswith("The run goes on plainly.")


def test_finetune_on_the_retain_people_gives_a_gold_model(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_here("finetune", *world.settings, "data.split=retain", "run.dir=gold", *TWO_STEPS)
    assert_ran(outcome)
    assert {"role": "gold", "method": "FineTune", "seed": 0}.items() < card_of(tmp_path / "gold").items()
    assert "to learn: 340 questions about 17 people" in " ".join(outcome.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["gold"]  # Hydra leaves nothing of its own


def test_without_train_splits_the_published_folders_are_trained_on(world, tmp_path, monkeypatch):
    shutil.copytree(world.people / BENCHMARK_FOLDER, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    root, _ = data_settings(world.people)
    outcome = run_here("unlearn", root, f"model.path={world.model}", *TWO_STEPS)  # to the default folder
    assert_ran(outcome)
    (done,) = tmp_path.glob("outputs/unlearn/*/DONE")
    assert card_of(done.parent)["method"] == "GradAscent"


def test_seed_decides_the_weights_of_an_adapter(world, lora_run, tmp_path):
    first = load_file(lora_run[0] / ADAPTER)
    torch.manual_seed(99)  # what happened before in a process must not matter
    for seed in (0, 1):
        words = (f"run.dir={tmp_path / str(seed)}", f"run.seed={seed}")
        assert_ran(run_here("unlearn", *world.settings, *TWO_STEPS, *words))
    again, other = load_file(tmp_path / "0" / ADAPTER), load_file(tmp_path / "1" / ADAPTER)
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert not any(torch.equal(other[name], first[name]) for name in first if "lora_A" in name)


def test_overwrite_replaces_a_finished_run(world, full_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(full_run[0], folder)
    outcome = run_here("unlearn", *world.settings, *TWO_STEPS, f"run.dir={folder}", "run.overwrite=true")
    assert_ran(outcome)
    assert (folder / ADAPTER).is_file()
    assert not (folder / "model" / "model.safetensors").exists()
    assert len(steps_of(folder)) == 2


# --- the saved model -------------------------------------------------------------------------------------------------


def test_full_model_opens_with_transformers_alone(full_run, world):
    folder = full_run[0] / "model"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    example = world.benchmark().splits().forget[0]
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=prompt, images=example.image.open(), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_adapter_opens_with_peft_alone(lora_run, world):
    folder = lora_run[0] / "model"
    adapted = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(world.model), folder)
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): tensor for name, tensor in adapted.state_dict().items() if "lora_" in name}
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert AutoProcessor.from_pretrained(folder).chat_template


def test_full_model_evaluates(full_run, world, tmp_path):
    words = (f"model.path={full_run[0] / 'model'}", f"run.dir={tmp_path}", "evaluation.limit=1", "evaluation.splits=[forget]")
    assert_ran(run_here("evaluate", *world.data, *words))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["model"]["role"] == "unlearned"
    assert results["model"]["method"] == "GradDiff"


# --- stopping and going on -------------------------------------------------------------------------------------------

RESUMABLE = ("trainer=grad_diff", "trainer.args.max_steps=30", "trainer.args.save_steps=1", "trainer.args.logging_steps=1")


def killed_after_a_checkpoint(folder, words):
    """Start a run in a process of its own and kill it as soon as it has saved something."""
    command = [Path(sys.executable).with_name("mmunlearn"), "unlearn", *words, f"run.dir={folder}"]
    with subprocess.Popen(
        command, env=command_environment(), cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*/progress.json")):
            assert process.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.thorough
def test_killed_and_resumed_run_ends_with_the_same_bits(world, tmp_path):
    words = (*world.settings, *RESUMABLE)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    killed_after_a_checkpoint(stopped, words)
    assert not (stopped / "DONE").exists()
    log = stopped / "metrics.jsonl"
    first_line = json.loads(log.read_text().splitlines()[0])
    with log.open("a") as file:  # what a run may have logged after its last checkpoint
        file.write(json.dumps(first_line | {"step": 30}) + '\n{"step": 3')

    refused = run_here("unlearn", *words, f"run.dir={stopped}", "run.resume=true", "trainer.args.learning_rate=1e-3")
    assert refused.code == 2
    assert "other settings" in refused.err

    resumed = run_here("unlearn", *words, f"run.dir={stopped}", "run.resume=true")
    assert_ran(resumed)
    first = re.search(r"Going on from step (\d+) of 30", resumed.err)
    assert first
    assert 1 <= int(first[1]) < 30

    assert_ran(run_here("unlearn", *words, f"run.dir={whole}"))
    found, expected = load_file(stopped / ADAPTER), load_file(whole / ADAPTER)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [step["step"] for step in steps_of(stopped)] == list(range(1, 31))
    same = ("terms", "retain_loss", "gradient_norm", "learning_rate")
    assert [[step[key] for key in same] for step in steps_of(stopped)] == [
        [step[key] for key in same] for step in steps_of(whole)
    ]
    assert not (stopped / "checkpoints").exists()


def test_interrupted_evaluation_goes_on(world, evaluation, lora_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluation[0], folder)
    answers = folder / "predictions" / "forget_text_cloze.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:2]) + lines[2][:100])  # a kill in the middle of a line
    untouched = folder / "predictions" / "retain_image_choice.jsonl"
    kept = untouched.read_bytes()
    (folder / "DONE").unlink()
    words = (*world.data, f"model.path={lora_run[0] / 'model'}", f"run.dir={folder}", *FEW_QUESTIONS)
    assert_ran(run_here("evaluate", *words))
    assert (folder / "DONE").is_file()
    assert untouched.read_bytes() == kept
    found = answers.read_bytes().splitlines(keepends=True)
    assert found[:2] == lines[:2]
    # The others were asked in a smaller batch, which may change the last bits.
    for line, expected in zip(map(json.loads, found), map(json.loads, lines), strict=True):
        assert (line["id"], line["key"], line["text"]) == (expected["id"], expected["key"], expected["text"])
        assert line["answer_log_probs"] == pytest.approx(expected["answer_log_probs"], abs=1e-4)


# --- sweeps ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_sweep_gives_each_job_a_folder(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = "trainer.args.learning_rate=1e-4,1e-3"
    outcome = run_here("unlearn", "-m", *world.settings, rates, "run.dir=sweep", *TWO_STEPS)
    assert_ran(outcome)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]  # Hydra leaves nothing of its own
    folders = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["trainer.args.learning_rate=0.0001", "trainer.args.learning_rate=0.001"]
    assert all((folder / "DONE").is_file() for folder in folders)
    assert [steps_of(folder)[0]["learning_rate"]["language"] for folder in folders] == pytest.approx([5e-5, 5e-4])


@pytest.mark.thorough
def test_failing_job_does_not_stop_a_sweep(world, tmp_path):
    full = ("model.tune.language.mode=full", "model.dtype=float32")
    words = ("trainer.args.learning_rate=1e30,1e-4", *full, f"run.dir={tmp_path}", *TWO_STEPS)
    outcome = run_here("unlearn", "--multirun", *world.settings, *words)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("mmunlearn: ")]) == 1
    assert [done.parent.name for done in tmp_path.glob("*/DONE")] == ["trainer.args.learning_rate=0.0001"]


# --- evaluation and report -------------------------------------------------------------------------------------------


def test_evaluate(evaluation, world):
    folder, outcome = evaluation
    assert_ran(outcome)
    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == 1
    asked = {"name": "mllmu", "version": world.benchmark().version, "protocol": "fixed", "choice": "letter"}
    assert asked.items() < results["benchmark"].items()
    assert results["model"]["role"] == "unlearned"
    assert results["model"]["method"] == "GradAscent"
    kinds = [f"{kind}_{ask}" for kind in ("image", "text") for ask in ("choice", "cloze", "generation")]
    assert list(results["tasks"]) == [f"{split}_{kind}" for split in ("forget", "retain") for kind in kinds]
    for metrics in results["tasks"].values():
        for metric in metrics.values():
            assert metric.keys() == {"value", "low", "high", "count", "unscored"}
            assert metric["count"] + metric["unscored"] == 4
    assert (folder / "DONE").is_file()


def test_predict_and_score_one_after_the_other_give_the_same(evaluation, world, lora_run, tmp_path):
    words = (*world.data, f"model.path={lora_run[0] / 'model'}", *FEW_QUESTIONS)
    assert_ran(run_here("predict", *words, f"run.dir={tmp_path}"))
    assert not (tmp_path / "results.json").exists()
    assert_ran(run_here("score", f"run.dir={tmp_path}"))
    assert (tmp_path / "results.json").read_bytes() == (evaluation[0] / "results.json").read_bytes()


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory):
    """A folder for PYTHONPATH with a torch that cannot be imported."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch.py").write_text('raise ImportError("this command must do without torch")\n')
    return folder


def test_score_needs_neither_torch_nor_model(evaluation, tmp_path, no_torch):
    shutil.copytree(evaluation[0], tmp_path / "run")
    for made in ("results.json", "DONE"):
        (tmp_path / "run" / made).unlink()
    outcome = run_command("score", "run.dir=run", cwd=tmp_path, PYTHONPATH=str(no_torch))
    assert_ran(outcome)
    assert contents(tmp_path / "run").keys() == contents(evaluation[0]).keys()
    assert (tmp_path / "run" / "results.json").read_bytes() == (evaluation[0] / "results.json").read_bytes()


def test_report_of_two_evaluations(evaluation, world, lora_run, tmp_path, no_torch):
    vanilla = tmp_path / "vanilla"
    assert_ran(run_here("evaluate", *world.settings, f"run.dir={vanilla}", *FEW_QUESTIONS))
    words = (f"report.evaluations=[{vanilla},{evaluation[0]}]", f"report.trainings=[{lora_run[0]}]", "run.dir=report")
    outcome = run_command("report", *words, cwd=tmp_path, PYTHONPATH=str(no_torch))  # needs no torch either
    assert_ran(outcome)
    page = (tmp_path / "report" / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|<script""", page)
    rows = json.loads((tmp_path / "report" / "results.json").read_text())
    assert {(row["role"], row["method"]) for row in rows} == {("vanilla", "none"), ("unlearned", "GradAscent")}
    assert {row["task"].split("_")[0] for row in rows} == {"forget", "retain", "all"}


# --- the other verbs -------------------------------------------------------------------------------------------------


def test_inspect_shows_answers_and_writes_pictures(world, tmp_path):
    outcome = run_here("inspect", *world.settings, f"run.dir={tmp_path / 'look'}")
    assert_ran(outcome)
    shown = " ".join(outcome.out.split())
    examples = {example.id: example for example in world.benchmark().splits().forget}
    first = next(iter(examples.values()))
    assert first.id in shown
    assert f"ASSISTANT: {first.answer}</s>" in shown
    pictures = sorted((tmp_path / "look" / "inspect").glob("*.png"))
    assert pictures
    sizes = set()
    for path in pictures:
        with Image.open(path) as image:
            sizes.add(image.size)
    assert sizes == {(32, 32)}


def test_doctor(tmp_path):
    outcome = run_command("doctor", cwd=tmp_path)
    assert_ran(outcome)
    for word in ("Python", "GPU", "torch", "disk", "offline"):
        assert word in outcome.out


def test_list():
    outcome = run_here("list")
    assert_ran(outcome)
    for name in ("llava-1.5-7b-hf", "grad_ascent", "grad_diff", "people", "rougeL", "accuracy"):
        assert name in outcome.out


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_verb_and_loads_nothing(words, tmp_path, no_torch):
    outcome = run_command(*words, cwd=tmp_path, PYTHONPATH=str(no_torch))
    assert_ran(outcome)
    assert all(f"\n  {verb} " in outcome.out for verb in (*VERBS, "doctor", "list"))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_a_verb_says_where_its_settings_are(verb):
    outcome = run_here(verb, "--help")
    assert_ran(outcome)
    assert f"mmunlearn {verb} --cfg job" in outcome.out


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"finetune", "unlearn"}))
def test_what_is_done_once_is_refused_on_several_ranks(verb, monkeypatch, tmp_path):
    """Each rank would do it, and they would lock each other out of the folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "for one process" not in run_here(verb, "no.such=setting").err, "some clusters set it in every shell"
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.chdir(tmp_path)
    assert_ran(run_here(verb, "--help"))
    outcome = run_here(verb)
    assert outcome.code == 2
    assert f"mmunlearn {verb} is for one process, but a launcher started 2" in outcome.err
    assert not list(tmp_path.iterdir())


def test_configuration_is_shown_and_nothing_runs(world, tmp_path):
    outcome = run_here("unlearn", *world.settings, f"run.dir={tmp_path / 'run'}", "--cfg", "job")
    assert_ran(outcome)
    assert f"path: {world.model}" in outcome.out
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_demo_makes_every_model_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmunlearn.pipeline.MAX_WORKERS", 1)  # worker processes would load torch again
    few = {"num_people": 8, "num_public_figures": 2, "num_holdout": 1, "num_general_faces": 1}
    trained = ("see", "base", "vanilla", "gold", "gold_text", "methods.GradDiff", "methods.MMUnlearner")
    words = [f"data.{name}={number}" for name, number in few.items()]
    words += [f"demo.{stage}.args.max_steps=1" for stage in trained]
    words += [f"~demo.methods.{name}" for name in ("GradAscent", "KL_Min", "NPO", "random_mask")]
    words += ["~demo.masks.magnitude", "evaluation.limit=1", "evaluation.splits=[forget,retain]"]
    outcome = run_here("demo", *words)
    assert_ran(outcome)
    rows = json.loads((tmp_path / "outputs/demo/results.json").read_text())
    assert {row["role"] for row in rows} == {"base", "vanilla", "gold", "gold_text", "unlearned"}
    assert {row["method"] for row in rows if row["role"] == "unlearned"} == {"GradDiff", "MMUnlearner"}
    assert (tmp_path / "outputs/demo/mask-random/mask.safetensors").is_file()
    assert (tmp_path / "outputs/demo/report.html").is_file()
    assert (tmp_path / "outputs/demo/GradDiff/model/model.safetensors").is_file()

    def stages():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs/cache").rglob("*")}

    made = stages()
    assert_ran(run_here("demo", *words))
    assert stages() == made


# --- from Python -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_examples(world, tmp_path):
    """Examples made by hand from picture files."""
    splits = world.benchmark().splits()

    def by_hand(examples, name):
        made = []
        for number, example in enumerate([each for each in examples if each.image is not None][:6]):
            path = tmp_path / f"{name}-{number}.png"
            example.image.open().save(path)
            picture = image_file(path)
            made.append(
                Example(id=path.stem, question=example.question, answer=example.answer, image=picture, subject=example.subject)
            )
        return tuple(made)

    return by_hand(splits.forget, "forget"), by_hand(splits.retain, "retain")


def only(split):
    return EvaluationSettings(splits=(split,), device="cpu")


def answer_log_likelihood(model, processor, examples):
    asker = Asker(model=model, encoder=Encoder(processor, max_length=320), batch_size=8, device=next(model.parameters()).device)
    return sum(float(statistics.log_probs.sum()) for statistics in asker.statistics(examples))


def test_python_unlearns_examples_made_by_hand(world, own_examples, tmp_path):
    forget, retain = own_examples
    vanilla = load(ModelConfig(path=str(world.model)))
    before = answer_log_likelihood(vanilla.model, vanilla.processor, forget)
    settings = Settings(
        args=TrainerArgs(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=6),
        tune=Tune(language=PartTuning(mode=Mode.full)),
        device="cpu",
    )
    options = {"forget": forget, "retain": retain, "method": GradDiff(retain_weight=0.5), "settings": settings}
    model = mmunlearn.unlearn(vanilla.model, vanilla.processor, output=tmp_path / "kept", **options)
    assert answer_log_likelihood(model, vanilla.processor, forget) < before - 1
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "kept" / "model")
    assert steps_of(tmp_path / "kept")[0]["terms"].keys() == {"forget", "retain"}
    kept = contents(tmp_path / "kept")
    with pytest.raises(RunError, match="kept"):
        mmunlearn.unlearn(model, vanilla.processor, output=tmp_path / "kept", **options)
    assert contents(tmp_path / "kept") == kept


def test_python_leaves_nothing_on_disk_unless_asked(world, own_examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    there = set(contents(tmp_path))
    vanilla = load(ModelConfig(path=str(world.model)))
    settings = Settings(args=TrainerArgs(max_steps=1), device="cpu")
    model = mmunlearn.unlearn(vanilla.model, vanilla.processor, forget=own_examples[0], method=GradAscent(), settings=settings)
    assert isinstance(model, PeftModel)
    results = mmunlearn.evaluate(model, vanilla.processor, world.benchmark(), settings=only("forget"))
    assert results["tasks"]["forget_image_choice"]["accuracy"]["count"] == 18
    assert set(contents(tmp_path)) == there


def test_command_and_python_agree(world, lora_run, tmp_path):
    loaded = load(ModelConfig(path=str(lora_run[0] / "model"), dtype="bfloat16"), merge=False)  # as the preset says
    benchmark = world.benchmark()
    words = (*world.data, f"model.path={lora_run[0] / 'model'}", f"run.dir={tmp_path}", "evaluation.splits=[holdout]")
    assert_ran(run_here("evaluate", *words))
    from_command = json.loads((tmp_path / "results.json").read_text())
    from_python = mmunlearn.evaluate(loaded.model, loaded.processor, benchmark, settings=only("holdout"))
    assert from_python["tasks"] == from_command["tasks"]
    assert from_python["model"]["fingerprint"] == from_command["model"]["fingerprint"]
