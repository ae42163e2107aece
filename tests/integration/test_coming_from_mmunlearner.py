"""The page "Coming from MMUnlearner": every command on it runs as it stands there, in both layouts, and every option is real.

Paths of a real machine are replaced, and a run is cut to two steps or a few questions; nothing else is.
"""

import json
import re
import shlex
from dataclasses import replace
from string import Template

import command_cases
import pytest
from command_cases import REPOSITORY, run_here
from omegaconf import OmegaConf

from mmunlearn.benchmarks.people_clear import PeopleClear
from mmunlearn.benchmarks.people_files import BENCHMARK_FOLDER, TRAIN_FOLDER
from mmunlearn.cli import VERBS
from mmunlearn.config import Config, ModelConfig
from mmunlearn.models.load import load, save
from mmunlearn.models.tiny import build_tiny

pytestmark = pytest.mark.thorough

PAGE = (REPOSITORY / "docs" / "coming-from-mmunlearner.md").read_text(encoding="utf-8")
SHORT = {
    "finetune": ("trainer.args.max_steps=2",),
    "unlearn": ("trainer.args.max_steps=2",),
    "saliency": ("saliency.limit=6",),
    "evaluate": ("evaluation.limit=2", "evaluation.splits=[forget,retain]"),
    "report": (),
}
README_OPTIONS = (
    "model_id", "vanilla_dir", "oracle_model_id", "data_split_dir", "data_folder", "forget_split_ratio", "forget_ratio",
    "save_dir", "batch_size", "lr", "num_epochs", "ans_only", "grad_mask_path", "gpu_id", "shot_num",
)  # fmt: skip
"""Everything behind two dashes in the README, and the two arguments of the evaluation scripts."""
SCRIPT_OPTIONS = ("beta", "forget_alpha", "max_length", "gradient_accumulation_steps")
README_SCRIPTS = (
    "MLLMU_finetune.py", "MLLMU_reference.py", "CLEAR_reference.py", "MLLMU_GA.py", "CLEAR_GA.py", "MLLMU_GA_Diff.py",
    "CLEAR_GA_Diff.py", "MLLMU_KL_Min.py", "CLEAR_KL_Min.py", "MLLMU_NPO.py", "CLEAR_NPO.py", "MLLMU_gen_mask.py",
    "CLEAR_gen_mask.py", "MLLMU_manifold.py", "CLEAR_manifold.py", "MLLMU_eval.sh", "CLEAR_eval.sh",
)  # fmt: skip
SIZE = replace(command_cases.SIZE, max_length=400)  # captions are long


def commands():
    """Every command of the page, as its words, shell variables filled in."""
    variables, found = {}, []
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if assignment := re.fullmatch(r"([A-Z]+)=(.*)", line):
                variables[assignment[1]] = assignment[2].strip('"')
            else:
                found.append(shlex.split(Template(line).substitute(variables)))
    return found


COMMANDS = commands()


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """A folder with data where MMUnlearner wants it, and an untrained model."""
    root = tmp_path_factory.mktemp("coming-from")
    (root / "data").mkdir()
    (root / "data" / "MLLMU-Bench").symlink_to(world.people / BENCHMARK_FOLDER)
    (root / "data" / "MLLMMU-Bench").symlink_to(world.people / TRAIN_FOLDER)
    clear = PeopleClear(root=str(root / "made"), num_people=20, num_public_figures=4, image_size=32)
    texts = [text for example in clear.splits().full for text in (example.question, example.answer)]
    texts += [text for example in world.benchmark().splits().full for text in (example.question, example.answer)]
    (root / "data" / "CLEAR").symlink_to(clear.folder)
    save(*build_tiny(texts, seed=0, size=SIZE), root / "base", {"role": "base", "method": "none"})
    return root


@pytest.fixture(scope="module")
def outcomes(place):
    """What became of each command, run in the order of the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        found = []
        for program, verb, *words in COMMANDS:
            assert program == "mmunlearn"
            filled = [word.replace("/models/llava-1.5-7b-hf", str(place / "base")) for word in words]
            is_control = any(word.startswith("saliency.like=") for word in words)  # looks at no example
            found.append(run_here(verb, *filled, *(() if is_control else SHORT[verb])))
        yield found


def folder_of(words):
    return next(word.removeprefix("run.dir=") for word in words if word.startswith("run.dir="))


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[folder_of(words) for words in COMMANDS])
def test_command_runs(number, outcomes, place):
    outcome = outcomes[number]
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    _, verb, *words = COMMANDS[number]
    written = {"saliency": "mask.safetensors", "evaluate": "results.json", "report": "report.html"}
    assert (place / folder_of(words) / written.get(verb, "model/mmunlearn.json")).is_file()


def card(place, name):
    return json.loads((place / "outputs" / name / "model" / "mmunlearn.json").read_text())


def test_models_are_what_the_page_says(outcomes, place):
    said = {name: card(place, name) for name in ("mllmu/vanilla", "mllmu/gold", "mllmu/gold-text", "clear/gold", "mllmu/npo")}
    assert [said[name]["role"] for name in list(said)[:4]] == ["vanilla", "gold", "gold_text", "gold"]
    assert said["mllmu/npo"]["method"] == "NPO (uses gold)"
    assert card(place, "mllmu/mmunlearner")["goal"] == "visual_only"
    assert card(place, "mllmu/ga")["goal"] == "erase"


def test_unlearning_moved_something(outcomes, place):
    """Both kinds of result differ from the vanilla model: whole weights and adapters."""
    vanilla = load(ModelConfig(path=str(place / "outputs/mllmu/vanilla/model"), dtype="float32")).model.state_dict()
    for name in ("mllmu/ga", "mllmu/mmunlearner", "mllmu/mmunlearner-lora", "mllmu/mmunlearner-vision"):
        after = load(ModelConfig(path=str(place / "outputs" / name / "model"), dtype="float32")).model.state_dict()
        moved = {key for key in vanilla if not after[key].equal(vanilla[key])}
        assert moved, name
        assert all(key.startswith(("model.vision", "model.multi")) == name.endswith("vision") for key in moved), name


def cells():
    """Left and right of each row of a table."""
    return [(row[1], row[2]) for row in (line.split("|") for line in PAGE.splitlines() if line.startswith("|")) if len(row) > 3]


@pytest.mark.parametrize("option", [*README_OPTIONS, *SCRIPT_OPTIONS])
def test_option_has_a_row(option):
    left = " ".join(cell for cell, _ in cells())
    assert re.search(rf"`(--)?{option}`", left)


@pytest.mark.parametrize("script", README_SCRIPTS)
def test_script_has_a_row(script):
    assert any(f"`{script}`" in left for left, _ in cells())


def test_every_named_setting_exists():
    known = OmegaConf.structured(Config)
    own_fields = {"data.root", "data.train_root", "data.forget_ratio", "data.modality", "data.seed"}  # of the benchmark
    of_methods = {f"trainer.method.{name}" for name in ("beta", "forget_weight", "mask", "scope")}
    sections = "|".join(known)
    named = set(re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)(?:=[^`]*)?`", PAGE))
    assert len(named) > 15
    for setting in named - own_fields - of_methods:
        assert OmegaConf.select(known, setting, default="absent") != "absent", setting


def test_every_named_preset_exists():
    presets = set(re.findall(r"\b(trainer|saliency)=([a-z_]+)", PAGE))
    assert len(presets) > 12
    assert [
        f"{group}={name}" for group, name in presets if not (REPOSITORY / "configs" / group / f"{name}.yaml").is_file()
    ] == []


def test_every_verb_is_shown():
    assert {words[1] for words in COMMANDS} == {"finetune", "unlearn", "saliency", "evaluate", "report"} <= VERBS.keys()
