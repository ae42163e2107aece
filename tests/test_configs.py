"""Every file in configs/ is one that the program takes, and the names that users type exist."""

import importlib
import json
import tomllib
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from mmunlearn.cli import VERBS
from mmunlearn.config import configs_folder
from mmunlearn.config_check import TARGET, build, checked
from mmunlearn.demo import Plan
from mmunlearn.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = configs_folder()
TOP = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
PRESETS = sorted((path.parent.name, path.stem) for path in CONFIGS.glob("*/*.yaml"))


@cache
def groups_of(name):
    """The groups from which a top-level configuration chooses."""
    defaults = OmegaConf.load(CONFIGS / f"{name}.yaml").get("defaults", [])
    return {str(group) for entry in defaults if isinstance(entry, DictConfig) for group in entry}


def choices():
    """Every preset in the first configuration with its group, and the first preset of every group in all of them."""
    first_top = {group: top for top in reversed(TOP) for group in groups_of(top)}
    first_preset = {group: preset for group, preset in reversed(PRESETS)}
    for top in TOP:
        for group, preset in PRESETS:
            if group in groups_of(top) and (top == first_top[group] or preset == first_preset[group]):
                yield top, group, preset


CHOICES = list(choices())


def composed(name, *overrides):
    """A checked configuration, as a verb gets it."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return checked(compose(config_name=name, overrides=[*overrides, "++run.dir=somewhere"]))


def targets(node, path=""):
    """Path and content of each section that names a class."""
    if isinstance(node, ListConfig):
        for number, item in enumerate(node):
            yield from targets(item, f"{path}[{number}]")
    if isinstance(node, DictConfig):
        if TARGET in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}".lstrip("."))


def own_fields(section):
    """Without the settings that `data` has beside those of its class."""
    module, _, name = section[TARGET].rpartition(".")
    fields = getattr(importlib.import_module(module), name).__dataclass_fields__
    return {key: value for key, value in section.items() if key == TARGET or key in fields}


def assert_targets_exist(config):
    for path, section in targets(config):
        built = build(path, own_fields(section))
        assert f"{type(built).__module__}.{type(built).__name__}" == section[TARGET]


@pytest.mark.parametrize("name", TOP)
def test_configuration_composes_and_its_classes_exist(name):
    assert_targets_exist(composed(name))


@pytest.mark.thorough
@pytest.mark.parametrize(("top", "group", "preset"), CHOICES)
def test_every_preset_fits_every_configuration_with_its_group(top, group, preset):
    assert_targets_exist(composed(top, f"{group}={preset}"))


def test_every_preset_belongs_to_a_configuration():
    assert {(group, preset) for _, group, preset in CHOICES} == set(PRESETS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_its_configuration(verb):
    name, sections = VERBS[verb][1:3]
    assert name in TOP
    given = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert {str(key) for key in given if key != "defaults"} | groups_of(name) <= {*sections, "model"}


def test_stages_of_the_demo_are_checked_as_verbs_are():
    plan = Plan(composed("demo"))  # checks the settings of every stage
    trained = [plan.seeing, plan.base, plan.vanilla, *plan.golds, *plan.unlearned]
    for stage in trained:
        build("trainer.method", checked(OmegaConf.create(stage.settings)).trainer.method)
    assert [stage.name for stage in trained[:5]] == ["seeing", "base", "vanilla", "gold-0", "gold_text"]
    methods = ["GradAscent", "GradDiff", "KL_Min", "NPO", "MMUnlearner", "random_mask"]
    assert [stage.name for stage in plan.unlearned] == methods
    assert [stage.name for stage in plan.masks.values()] == ["mask-saliency", "mask-random", "mask-magnitude"]


def test_masks_of_the_demo_reach_those_who_name_them():
    plan = Plan(composed("demo"))
    by_name = {stage.name: stage for stage in plan.unlearned}
    for method, mask in (("MMUnlearner", "saliency"), ("random_mask", "random")):
        made = plan.masks[mask]
        assert by_name[method].settings["trainer"]["method"]["mask"] == str(made.run.mask)
        assert made.key in by_name[method].needs
    assert plan.masks["random"].settings["saliency"]["like"] == str(plan.masks["saliency"].run.mask)


def test_a_method_of_the_demo_may_have_another_goal():
    method = "{_target_: mmunlearn.methods.grad_diff.GradDiff}"
    plan = Plan(composed("demo", f"+demo.methods.faces={{goal: visual_only, method: {method}, args: {{max_steps: 1}}}}"))
    by_name = {stage.name: stage for stage in plan.unlearned}
    assert by_name["faces"].settings["run"]["goal"] == "visual_only"
    assert by_name["GradDiff"].settings["run"]["goal"] != "visual_only"


def test_an_unknown_mask_of_the_demo_is_named():
    with pytest.raises(ConfigError, match=r"salience.*saliency"):
        Plan(composed("demo", "demo.methods.MMUnlearner.method.mask=salience"))


@pytest.mark.parametrize(
    "name",
    [
        "default.yaml",
        "finetune.yaml",
        "evaluate.yaml",
        "model/llava-1.5-7b-hf.yaml",
        "data/unlearn.yaml",
        "trainer/grad_ascent.yaml",
        "trainer/grad_diff.yaml",
        "deepspeed/zero3.json",
    ],
)
def test_names_that_users_type_exist(name):
    assert (CONFIGS / name).is_file()


def test_llava_preset_has_the_sections_that_users_override():
    preset = OmegaConf.load(CONFIGS / "model/llava-1.5-7b-hf.yaml")
    assert preset.name == "llava-hf/llava-1.5-7b-hf"
    assert {"path", "processor", "peft", "tune"} <= set(preset)
    assert {"r", "alpha", "dropout"} <= set(preset.peft)


def test_default_is_gradient_ascent_on_llava_with_lora():
    config = composed("default")
    assert config.model.name == "llava-hf/llava-1.5-7b-hf"
    assert {part: section.mode for part, section in config.model.tune.items()} == {
        "vision": "freeze",
        "projector": "freeze",
        "language": "lora",
    }
    assert config.data[TARGET].endswith(".MLLMUBench")
    assert config.data.forget_ratio == "15"
    assert config.trainer.method[TARGET].endswith(".GradAscent")


def test_overrides_of_the_documented_commands_are_taken():
    words = ("trainer.args.num_train_epochs=3", "trainer.args.per_device_train_batch_size=4")
    args = composed("default", *words).trainer.args
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (3.0, 4)


def test_deepspeed_file_is_json_and_named_by_grad_diff():
    assert json.loads((CONFIGS / "deepspeed/zero3.json").read_text())["zero_optimization"]["stage"] == 3
    named = composed("default", "trainer=grad_diff").trainer.args.deepspeed
    assert named == "configs/deepspeed/zero3.json"
    assert (ROOT / named).is_file()


@pytest.mark.parametrize("path", sorted((CONFIGS / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_first_line_of_a_model_says_what_it_is(path):
    """`mmunlearn list` shows it."""
    assert path.read_text().startswith("# ")


def test_configurations_ship_in_the_wheel():
    build_settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build_settings["force-include"]["configs"] == "mmunlearn/configs"
    assert build_settings["packages"] == ["src/mmunlearn"]
    assert configs_folder() in (ROOT / "configs", ROOT / "src/mmunlearn/configs")
