"""What a configuration may say, and how all its mistakes are told at once."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from mmunlearn.config import Config, EvaluationConfig, ModelConfig, TrainerArgs, Tune, typed
from mmunlearn.config_check import build, checked
from mmunlearn.config_enums import Choice, Mode, Role
from mmunlearn.errors import ConfigError, did_you_mean
from mmunlearn.methods.grad_diff import GradDiff

GRAD_DIFF = {"_target_": "mmunlearn.methods.grad_diff.GradDiff"}
PEOPLE = {"_target_": "mmunlearn.benchmarks.people.People"}


def check(*overrides, **sections):
    return checked(OmegaConf.merge(OmegaConf.create(sections), OmegaConf.from_dotlist(list(overrides))))


def problems(*overrides, **sections):
    """The lines of the message; every one stands for a mistake."""
    with pytest.raises(ConfigError) as caught:
        check(*overrides, **sections)
    return str(caught.value).splitlines()


# --- what is right ---------------------------------------------------------------------------------------------------


def test_defaults_fill_what_is_not_given():
    found = check("run.seed=7", "trainer.args.learning_rate=0.1", trainer={"method": GRAD_DIFF}, data=PEOPLE)
    assert found.run.seed == 7
    assert found.run.dir == Config().run.dir
    assert found.trainer.args.learning_rate == 0.1
    for name, default in dataclasses.asdict(TrainerArgs()).items():
        if name != "learning_rate":
            assert found.trainer.args[name] == default, name
    assert found.model.tune.language.mode == "lora"
    assert found.model.tune.vision.mode == "freeze"


def test_a_section_with_a_target_takes_the_fields_of_both_classes():
    found = check(
        "data.num_people=12", "data.split=retain", "trainer.method.retain_weight=3", data=PEOPLE, trainer={"method": GRAD_DIFF}
    )
    assert found.data._target_ == PEOPLE["_target_"]
    assert (found.data.num_people, found.data.seed) == (12, 0)
    assert (found.data.split, found.data.answer_only) == ("retain", True)
    assert dict(found.trainer.method) == {**GRAD_DIFF, "forget_weight": 1.0, "retain_weight": 3.0, "retain_loss": "nll"}
    assert build("trainer.method", found.trainer.method) == GradDiff(retain_weight=3.0)


def test_checking_twice_changes_nothing():
    once = check("run.role=gold", data=PEOPLE, trainer={"method": GRAD_DIFF})
    assert checked(once) == once


def test_values_take_the_type_of_their_field():
    """YAML reads 1e-3 as a text, and the shell makes everything a text."""
    found = check(
        run={"seed": "3", "resume": "latest"},
        trainer={"args": {"learning_rate": "1e-3", "num_train_epochs": 2, "deepspeed": None}},
    )
    assert (found.run.seed, found.run.resume) == (3, "latest")
    assert found.trainer.args.learning_rate == 0.001
    assert isinstance(found.trainer.args.num_train_epochs, float)
    assert found.trainer.args.deepspeed is None


def test_values_of_a_target_take_the_type_of_its_fields():
    found = check("trainer.method.forget_weight=2", "data.forget_ratio=5", data=PEOPLE, trainer={"method": GRAD_DIFF})
    assert isinstance(found.trainer.method.forget_weight, float)
    assert found.data.forget_ratio == "5"


def test_interpolations_are_resolved():
    assert check("run.dir=out/${run.seed}", "run.seed=4").run.dir == "out/4"


def test_typed_sections_are_dataclasses():
    found = check("model.tune.vision.mode=full", "model.tune.vision.learning_rate=1e-6")
    tune = typed(found.model.tune, Tune)
    assert isinstance(tune, Tune)
    assert tune.vision.mode is Mode.full
    assert tune.vision.learning_rate == 1e-6
    assert tune.language.learning_rate is None
    assert typed(found.model, ModelConfig).tune == tune
    assert typed(check("evaluation.choice=text").evaluation, EvaluationConfig).choice is Choice.text
    assert Role(check("run.role=gold").run.role) is Role.gold


def test_hydra_s_own_section_is_left_alone():
    assert "hydra" not in check(hydra={"anything": 1})


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "meant"),
    [
        ("run.sed=1", "run.sed", "'seed'"),
        ("trainer.args.learning_rat=1", "trainer.args.learning_rat", "'learning_rate'"),
        ("trainer.args.num_epochs=1", "trainer.args.num_epochs", "'num_train_epochs'"),
        ("model.tune.language.mod=full", "model.tune.language.mod", "'mode'"),
        ("model.tune.langauge.mode=full", "model.tune.langauge", "'language'"),
        ("runn.seed=1", "runn", "'run'"),
        ("data.num_peple=3", "data.num_peple", "'num_people'"),
        ("trainer.method.forget_wieght=3", "trainer.method.forget_wieght", "'forget_weight'"),
    ],
)
def test_an_unknown_key_is_named_with_what_was_meant(override, path, meant):
    (line,) = problems(override, data=PEOPLE, trainer={"method": GRAD_DIFF})
    assert line.startswith(f"{path}: there is no such setting. Did you mean ")
    assert meant in line


def test_where_nothing_is_near_all_known_keys_are_listed():
    (line,) = problems("evaluation.zzz=1")
    assert "Known: batch_size, choice, " in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.seed=two", ("run.seed", "'two'", "int")),
        ("run.seed=1.5", ("run.seed", "1.5", "int")),
        ("run.resume=maybe", ("run.resume", "maybe", "true, false or latest")),
        ("trainer.args.learning_rate=fast", ("trainer.args.learning_rate", "'fast'", "float")),
        ("trainer.args.learning_rate=null", ("trainer.args.learning_rate", "None", "float")),
        ("trainer.method.forget_weight=two", ("trainer.method.forget_weight", "'two'", "float")),
        ("data.seed=x", ("data.seed", "'x'", "int")),
        ("evaluation.splits=forget", ("evaluation.splits", "'forget'", "write [forget]")),
        ("run.dir.name=x", ("run.dir", "one value")),
        ("run=5", ("run", "5", "section")),
        ("trainer.args=null", ("trainer.args", "section")),
        ("data=null", ("data", "_target_", "data=people")),
    ],
)
def test_a_wrong_type_names_key_value_and_type(override, words):
    (line,) = problems(override, data=PEOPLE, trainer={"method": GRAD_DIFF})
    assert line.startswith(words[0])
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("override", "known", "meant"),
    [
        ("model.tune.language.mode=loro", "freeze, lora, full", "Did you mean 'lora'?"),
        ("trainer.args.lr_scheduler_type=cosin", "linear, cosine, constant", "Did you mean 'cosine'?"),
        ("run.role=vanila", "base, vanilla, gold, gold_text, unlearned", "Did you mean 'vanilla'?"),
        ("evaluation.choice=word", "letter, text", "Known: letter, text."),
        ("data.split=everybody", "full, retain, retain_and_text", "Known: full, retain, retain_and_text."),
        ("data.modality=picture", "image, text, both", "Known: both, image, text."),
    ],
)
def test_an_unknown_value_is_named_with_the_known_ones(override, known, meant):
    (line,) = problems(override, data=PEOPLE)
    assert line == f"{override.split('=')[0]}: '{override.split('=')[1]}' is not one of {known}. {meant}"


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("warmup_ratio", "warmup_steps a number below 1"),
        ("optim", "AdamW"),
        ("output_dir", "run.dir"),
        ("resume_from_checkpoint", "run.resume=true"),
        ("fp16", "trainer.args.bf16"),
        ("torch_compile", "an argument of transformers' Trainer that is not supported here"),
        ("label_smoothing_factor", "an argument of transformers' Trainer that is not supported here"),
    ],
)
def test_a_real_training_argument_that_is_not_supported_gets_its_reason(argument, reason):
    (line,) = problems(f"trainer.args.{argument}=1")
    assert line.startswith(f"trainer.args.{argument}: ")
    assert reason in line
    assert "no such setting" not in line


@pytest.mark.parametrize("target", ["mmunlearn.methods.grad_dif.GradDiff", "mmunlearn.methods.grad_diff.Grad", "GradDiff", ""])
def test_a_target_that_does_not_exist_is_one_line_with_the_presets(target, capfd):
    (line,) = problems(trainer={"method": {"_target_": target, "retain_weight": 1}})
    assert line.startswith(f"trainer.method._target_: cannot import '{target}'")
    assert "trainer=grad_diff" in line
    assert capfd.readouterr() == ("", ""), "Hydra must not write a message of its own"


@pytest.mark.parametrize("target", ["pathlib.Path", "mmunlearn.methods.losses.answer_nll"])
def test_a_target_whose_settings_cannot_be_checked_is_refused(target):
    (line,) = problems(data={"_target_": target})
    assert line == f"data._target_: {target!r} is not a dataclass, so its settings cannot be checked."


def test_a_section_without_target_lists_the_presets():
    (line,) = problems("trainer.method.retain_weight=1")
    assert line.startswith("trainer.method: names no class.")
    assert "trainer=grad_ascent" in line


def test_all_mistakes_are_told_at_once():
    lines = problems(
        "run.sed=1",
        "run.role=vanila",
        "trainer.args.optim=sgd",
        "trainer.args.learning_rate=fast",
        "trainer.method.forget_wieght=1",
        "data.num_peple=3",
        data=PEOPLE,
        trainer={"method": GRAD_DIFF},
    )
    started = [line.split(":")[0] for line in lines]
    assert sorted(started) == [
        "data.num_peple",
        "run.role",
        "run.sed",
        "trainer.args.learning_rate",
        "trainer.args.optim",
        "trainer.method.forget_wieght",
    ]


@pytest.mark.parametrize(
    "override",
    [
        "trainer.args.per_device_train_batch_size=0",
        "trainer.args.gradient_accumulation_steps=0",
        "trainer.args.logging_steps=0",
        "trainer.args.save_total_limit=0",
        "trainer.args.save_steps=-1",
        "trainer.args.learning_rate=-1",
        "trainer.args.max_grad_norm=-1",
        "trainer.args.warmup_steps=-1",
        "trainer.args.num_train_epochs=-1",
        "trainer.args.dataloader_num_workers=-1",
        "trainer.args.adam_beta1=1",
        "trainer.args.adam_beta2=1.5",
        "trainer.args.adam_beta1=-0.1",
        "trainer.args.learning_rate=nan",
        "model.peft.r=0",
        "model.peft.alpha=0",
        "model.peft.dropout=1",
        "model.peft.dropout=-0.1",
        "evaluation.batch_size=0",
        "evaluation.limit=-1",
        "data.retain_per_forget=0",
    ],
)
def test_values_out_of_range(override):
    (line,) = problems(override, data=PEOPLE)
    assert line.startswith(f"{override.split('=')[0]}: ")
    assert "least" in line or "below" in line


@pytest.mark.parametrize(
    "override",
    ["trainer.args.max_grad_norm=0", "trainer.args.learning_rate=0", "trainer.args.save_steps=0", "model.peft.dropout=0"],
)
def test_values_at_the_edge_of_the_range(override):
    check(override)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("run.resume=true", "run.overwrite=true"), ("run.resume", "run.overwrite", "choose one")),
        (("model.tune.language.mode=freeze",), ("model.tune", "every part is frozen", "model.tune.language.mode=lora")),
    ],
)
def test_settings_that_contradict_each_other(overrides, words):
    (line,) = problems(*overrides)
    assert all(word in line for word in words)


def test_several_contradictions_are_told_at_once():
    assert len(problems("run.resume=true", "run.overwrite=true", "model.peft.r=0", "evaluation.batch_size=-3")) == 3


def test_an_interpolation_that_leads_nowhere():
    (line,) = problems("run.dir=${nowhere.at.all}")
    assert line.startswith("run.dir: ")
    assert "nowhere" in line


def test_did_you_mean():
    assert did_you_mean("lerning_rate", ["learning_rate", "seed"]) == "Did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b."
