"""What a job makes of its settings: which examples, which reference, which mask, what the card says, what is refused."""

import json
import shutil

import pytest
import torch
from command_cases import TWO_STEPS, contents, run_here
from safetensors.torch import load_file
from tiny_cases import random_mask

import mmunlearn.models.reference as reference
import mmunlearn.training.job as job
from mmunlearn.config import ModelConfig
from mmunlearn.data.batch import IGNORE, Encoder, collate
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.models.load import load, model_fingerprint
from mmunlearn.models.saliency_mask import save_mask

QUICK = (
    "model.dtype=float32",
    "model.tune.language.mode=freeze",
    "model.tune.projector.mode=full",
    "trainer.args.per_device_train_batch_size=4",
    "trainer.args.gradient_accumulation_steps=1",
    *TWO_STEPS,
)


STRICT = ("trainer.method.scope=update",)


def run(verb, *words):
    outcome = run_here(verb, *QUICK, *words)  # the later of two words counts
    assert outcome.code == 0, outcome.err
    return outcome


def card_of(folder):
    return json.loads((folder / "model" / "mmunlearn.json").read_text())


def likelihoods_of(folder):
    return json.loads((folder / "prepared.json").read_text())["log_likelihoods"]


def likelihood(folder, example):
    """Sum over the answer of log p, from transformers' own loss."""
    loaded = load(ModelConfig(path=str(folder), dtype="float32"))
    encoder = Encoder(loaded.processor, max_length=320)
    batch = collate([encoder(example)], pad_token_id=encoder.pad_token_id)
    with torch.no_grad():
        loss = loaded.model(**batch.inputs, labels=batch.labels).loss.item()
    return -loss * int((batch.labels != IGNORE).sum())


@pytest.fixture(scope="module")
def library(world, tmp_path_factory):
    """A vanilla model and the models that are its gold and gold_text, all from the untrained one; not to be changed."""
    root = tmp_path_factory.mktemp("library")
    for name, split in (("vanilla", "full"), ("gold", "retain"), ("gold_text", "retain_and_text")):
        run("finetune", *world.settings, f"data.split={split}", f"run.dir={root / name}", "trainer.args.learning_rate=1e-2")
    return root


@pytest.fixture
def unlearn(world, library, tmp_path):
    """Unlearn from the vanilla model in the library; the new run's folder and what was printed."""

    def start(*words, path=library / "vanilla/model", name="run"):
        folder = tmp_path / name
        return folder, run("unlearn", *world.data, f"model.path={path}", f"run.dir={folder}", *words)

    return start


@pytest.fixture
def refused(world, tmp_path):
    """One message that holds all the words; nothing is written."""

    def check(verb, *words, names):
        outcome = run_here(verb, *world.settings, f"run.dir={tmp_path / 'refused'}", *QUICK, *words)
        assert outcome.code == 2, outcome.err
        message = outcome.err[outcome.err.index("mmunlearn: ") :]
        assert "Traceback" not in outcome.err
        for name in names:
            assert name in message, message
        assert not (tmp_path / "refused").exists()

    return check


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_the_card_of_a_fine_tuned_model_says_what_went_into_it(world, library):
    splits = world.benchmark().splits()
    text = [example for example in splits.forget if example.image is None]
    assert 0 < len(text) < len(splits.forget)
    taught = {"vanilla": splits.full, "gold": splits.retain, "gold_text": [*splits.retain, *text]}
    base = model_fingerprint(load(ModelConfig(path=str(world.model), dtype="float32")).model)
    for role, examples in taught.items():
        card = card_of(library / role)
        fingerprints = {"data": examples_fingerprint(examples), "base": base}
        assert card == {"role": role, "method": "FineTune", "seed": 0, **fingerprints}
    assert len({card_of(library / role)["data"] for role in taught}) == 3


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_gold_is_found_used_and_owned_up_to(unlearn, library, world):
    folder, outcome = unlearn("trainer=npo", "trainer.reference=gold")
    assert f"found {library / 'gold' / 'model'}" in outcome.err
    base = card_of(library / "vanilla")["base"]
    assert card_of(folder) == {"role": "unlearned", "method": "NPO (uses gold)", "seed": 0, "goal": "erase", "base": base}
    found = likelihoods_of(folder)
    forget = world.benchmark().splits().forget
    assert found.keys() == {example.id for example in forget}
    gold, vanilla = (likelihood(library / name / "model", forget[0]) for name in ("gold", "vanilla"))
    assert abs(gold - vanilla) > 0.1
    assert found[forget[0].id] == pytest.approx(gold, rel=1e-4)


@pytest.mark.thorough
def test_the_published_preset_uses_gold_and_its_own_steps(unlearn):
    folder, _ = unlearn("trainer=npo_official")
    assert card_of(folder)["method"] == "NPO (uses gold)"


def test_without_a_name_the_reference_is_the_model_before_unlearning(unlearn, library, world):
    folder, _ = unlearn("trainer=npo")
    assert card_of(folder)["method"] == "NPO"
    first = world.benchmark().splits().forget[0]
    assert likelihoods_of(folder)[first.id] == pytest.approx(likelihood(library / "vanilla/model", first), rel=1e-4)


@pytest.mark.thorough
def test_a_folder_can_be_named_as_reference(unlearn, library, world):
    folder, _ = unlearn("trainer=npo", f"trainer.reference={world.model}")
    assert card_of(folder)["method"] == "NPO (other reference)"
    folder, _ = unlearn("trainer=npo", f"trainer.reference={library / 'gold_text' / 'model'}", name="text")
    assert card_of(folder)["method"] == "NPO (uses gold)"


@pytest.mark.thorough
def test_a_gold_model_of_another_base_is_not_taken(unlearn, library, world, tmp_path):
    """Newer, on the same examples, but made from another model than the vanilla one."""
    folder = library / "other"
    run("finetune", *world.data, f"model.path={library / 'vanilla/model'}", "data.split=retain", f"run.dir={folder}")
    assert card_of(folder)["data"] == card_of(library / "gold")["data"]
    _, outcome = unlearn("trainer=npo", "trainer.reference=gold")
    assert f"found {library / 'gold' / 'model'}" in outcome.err


def test_no_gold_model_is_one_message(refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ("trainer=npo", "trainer.reference=gold", "data.modality=image")  # no gold model has learned these examples
    refused("unlearn", *words, names=["No gold model", "data.split=retain", "trainer.reference"])


@pytest.mark.parametrize("trainer", ["grad_ascent", "grad_diff", "po"])
def test_a_reference_that_a_method_would_ignore_is_refused(trainer, refused, world):
    words = (f"trainer={trainer}", f"trainer.reference={world.model}")
    refused("unlearn", *words, names=["trainer.reference", "compares with no other model"])


def test_another_reference_model_is_kept_without_a_copy(unlearn, library, monkeypatch):
    kept = []
    original = reference.Reference.kept
    monkeypatch.setattr(reference.Reference, "kept", lambda self: kept.append((self, original(self))) or kept[-1][1])
    unlearn("trainer=kl_min", f"trainer.reference={library / 'gold' / 'model'}")
    ((before, after),) = kept
    assert after.model is before.model


class KilledError(BaseException):
    """Stands for a kill right after a checkpoint was written."""


@pytest.mark.thorough
def test_a_resumed_run_asks_the_reference_no_more_and_a_new_one_does(unlearn, monkeypatch):
    calls, compute, write = [], reference.answer_log_probs, job.save_checkpoint
    monkeypatch.setattr(reference, "answer_log_probs", lambda *args: calls.append(1) or compute(*args))

    def save_and_die(*args, **settings):
        write(*args, **settings)
        raise KilledError

    words = ("trainer=npo", "trainer.method.beta=0.5", "trainer.args.max_steps=3", "trainer.args.save_steps=1")
    whole, _ = unlearn(*words, "trainer.args.max_steps=3", name="whole")
    asked = len(calls)
    assert asked > 0
    with monkeypatch.context() as killing:
        killing.setattr(job, "save_checkpoint", save_and_die)
        with pytest.raises(KilledError):
            unlearn(*words, name="stopped")
    assert len(calls) == 2 * asked
    stopped, _ = unlearn(*words, "run.resume=true", name="stopped")
    assert len(calls) == 2 * asked, "likelihoods were stored"
    assert likelihoods_of(stopped) == likelihoods_of(whole)
    found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (stopped, whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- goal and modality -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "goal", "wanted"),
    [
        ((), "erase", (True, False)),
        (("run.goal=visual_only",), "visual_only", (True,)),
        pytest.param(("data.forget_modality=text",), "erase", (False,), marks=pytest.mark.thorough),
        pytest.param(
            ("run.goal=visual_only", "data.forget_modality=both"), "visual_only", (True, False), marks=pytest.mark.thorough
        ),
    ],
    ids=["erase", "visual-only", "text", "visual-only-both"],
)
def test_goal_and_modality_choose_what_is_unlearned(words, goal, wanted, unlearn, world):
    folder, _ = unlearn("trainer=npo", *words, *(() if True in wanted else ("model.tune.language.mode=lora",)))
    assert card_of(folder)["goal"] == goal
    forget = world.benchmark().splits().forget
    assert likelihoods_of(folder).keys() == {example.id for example in forget if (example.image is not None) in wanted}


def test_a_run_that_trains_nothing_is_an_error(unlearn, world, library, tmp_path):
    """Text questions use neither vision nor projector."""
    words = ("trainer=npo", "data.forget_modality=text", f"run.dir={tmp_path / 'nothing'}", *QUICK)
    outcome = run_here("unlearn", *world.data, f"model.path={library / 'vanilla/model'}", *words)
    assert outcome.code == 2
    assert "nothing was trained" in outcome.err


# --- identity: content, not paths ------------------------------------------------------------------------------------


@pytest.fixture
def stopped(world, library, tmp_path, monkeypatch):
    """A run that was killed after its first step, and the words that resume it."""

    def start(*words):
        words = (*world.data, f"run.dir={tmp_path / 'stopped'}", "trainer.args.save_steps=1", *words, *QUICK)

        def kill(training, *arguments, **more):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("mmunlearn.training.loop.Training._log", _after_first_checkpoint(kill))
            assert run_here("unlearn", *words).code == 130
        assert (tmp_path / "stopped" / "checkpoints" / "step-1").is_dir()
        return words

    return start


def _after_first_checkpoint(kill):
    def log(training, done, **record):
        if done > 1:
            kill(training)

    return log


def resume(words):
    return run_here("unlearn", *words, "run.resume=true")


@pytest.mark.thorough
def test_a_resumed_run_with_another_mask_behind_the_path_is_refused(world, library, mask, stopped, tmp_path):
    shutil.copytree(mask[1], tmp_path / "mask")
    vanilla = library / "vanilla/model"
    words = stopped("trainer=mmunlearner", f"trainer.method.mask={tmp_path / 'mask'}", f"model.path={vanilla}", *STRICT)
    other = random_mask(load(ModelConfig(path=str(world.model), dtype="float32")).model, seed=9)
    save_mask(other, tmp_path / "mask" / "mask.safetensors")
    outcome = resume(words)
    assert outcome.code == 2
    assert "mix two runs" in outcome.err
    shutil.copytree(mask[1], tmp_path / "mask", dirs_exist_ok=True)
    assert resume(words).code == 0


@pytest.mark.thorough
def test_a_resumed_run_from_another_model_behind_the_path_is_refused(library, stopped, tmp_path):
    shutil.copytree(library / "vanilla/model", tmp_path / "model")
    words = stopped("trainer=npo", f"model.path={tmp_path / 'model'}")
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(library / "gold/model", tmp_path / "model")
    outcome = resume(words)
    assert outcome.code == 2
    assert "mix two runs" in outcome.err


@pytest.mark.thorough
def test_likelihoods_of_another_model_behind_the_path_are_not_used(library, world, stopped, tmp_path):
    """Without a checkpoint the run starts anew, and must ask the model that is there now."""
    shutil.copytree(library / "vanilla/model", tmp_path / "model")
    words = stopped("trainer=npo", f"model.path={tmp_path / 'model'}")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints")
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(library / "gold/model", tmp_path / "model")
    assert resume(words).code == 0
    first = world.benchmark().splits().forget[0]
    assert likelihoods_of(tmp_path / "stopped")[first.id] == pytest.approx(likelihood(library / "gold/model", first), rel=1e-4)


def test_overwriting_never_deletes_what_a_run_is_made_from(world, library, mask, tmp_path):
    vanilla, copied, gold = f"model.path={library / 'vanilla/model'}", tmp_path / "mask", library / "gold"
    shutil.copytree(mask[1], copied)
    for setting, folder, words in (
        ("trainer.method.mask", copied, ("trainer=mmunlearner", f"trainer.method.mask={copied}", *STRICT)),
        ("trainer.reference", gold, ("trainer=npo", f"trainer.reference={gold / 'model'}")),
        ("trainer.reference", gold, ("trainer=npo", "trainer.reference=gold")),
    ):
        before = contents(folder)
        outcome = run_here("unlearn", *world.data, vanilla, *words, f"run.dir={folder}", "run.overwrite=true", *QUICK)
        assert outcome.code == 2, outcome.err
        assert setting in outcome.err
        assert contents(folder) == before


def test_settings_that_cannot_work_cost_no_earlier_run(world, library, unlearn):
    folder, _ = unlearn("trainer=npo")
    before = contents(folder)
    for words in (("trainer.method.unit=batch",), ("trainer.method.retain_weight=nan",), ("trainer.method.forget_weight=-1",)):
        accumulated = [word for word in QUICK if "accumulation" not in word] + ["trainer.args.gradient_accumulation_steps=2"]
        words = ("trainer=npo", *words, f"run.dir={folder}", "run.overwrite=true", *accumulated)
        outcome = run_here("unlearn", *world.data, f"model.path={library / 'vanilla/model'}", *words)
        assert outcome.code == 2
        assert contents(folder) == before


@pytest.mark.thorough
def test_a_mask_made_for_others_is_remarked(world, library, tmp_path, unlearn):
    made = ("saliency.modules=vision", "saliency.threshold=0.5", f"run.dir={tmp_path / 'm'}")
    outcome = run_here("saliency", *world.data, f"model.path={library / 'vanilla/model'}", "model.dtype=float32", *made)
    assert outcome.code == 0, outcome.err
    tune = ("model.tune.vision.mode=full", "trainer=mmunlearner", f"trainer.method.mask={tmp_path / 'm'}")
    assert "made for other people" not in unlearn(*tune, name="same")[1].err
    assert "made for other people" in unlearn(*tune, "data.forget_ratio=5", name="other")[1].err


@pytest.mark.thorough
def test_two_precisions_in_one_process(unlearn):
    """As a sweep over trainer.args.bf16 runs them."""
    unlearn("trainer=npo", "trainer.args.bf16=true", name="half")
    unlearn("trainer=npo", name="full")


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mask(world, tmp_path_factory):
    """A mask of all weights of the model, in memory and on disk."""
    found = random_mask(load(ModelConfig(path=str(world.model), dtype="float32")).model)
    folder = tmp_path_factory.mktemp("mask")
    save_mask(found, folder / "mask.safetensors")
    return found, folder


def test_a_masked_job_proves_that_nothing_else_moved(world, library, mask, unlearn):
    words = ("trainer=mmunlearner", f"trainer.method.mask={mask[1]}", "trainer.method.scope=update")
    folder, outcome = unlearn(*words)
    base = card_of(library / "vanilla")["base"]
    assert card_of(folder) == {"role": "unlearned", "method": "MMUnlearner", "seed": 0, "goal": "visual_only", "base": base}
    assert "Outside the mask no weight has moved by one bit." in " ".join(outcome.err.split())
    before, after = (load(ModelConfig(path=str(each / "model"))).model for each in (library / "vanilla", folder))
    moved = 0
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        inside = mask[0].tensor(name)
        assert torch.equal(old[~inside], new[~inside])
        moved += int((old != new).sum())
        assert "projector" in name or torch.equal(old, new)
    assert moved > 0


def test_a_job_whose_proof_fails_saves_no_model(world, library, mask, tmp_path, monkeypatch):
    original = job.tracked_run

    def tampered(run, training, **more):
        end = original(run, training, **more)
        name, weight = next((n, p) for n, p in training.model.named_parameters() if p.requires_grad)
        with torch.no_grad():
            weight[(~mask[0].tensor(name)).nonzero(as_tuple=True)] += 1e-3
        return end

    monkeypatch.setattr(job, "tracked_run", tampered)
    words = ("trainer=mmunlearner", f"trainer.method.mask={mask[1]}", "trainer.method.scope=update")
    path = f"model.path={library / 'vanilla/model'}"
    outcome = run_here("unlearn", *world.data, path, f"run.dir={tmp_path / 'run'}", *QUICK, *words)
    assert outcome.code == 2
    assert "Weights outside the mask moved in 1 tensors (model.multi_modal_projector" in outcome.err
    assert not (tmp_path / "run" / "model").exists()


def test_a_mask_that_is_missing_is_refused(refused):
    refused("unlearn", "trainer=mmunlearner", names=["trainer.method.mask", "mmunlearn saliency"])
    refused("unlearn", "trainer=salun", "trainer.method.mask=nowhere", names=["nowhere", "no such mask"])


# --- settings that would be ignored ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.schedule=alternating",
        "trainer.reference=gold",
        "run.goal=erase",
        "data.forget_modality=image",
        "data.retain_per_forget=2",
        "trainer.args.stop_forget_loss=3",
    ],
)
def test_fine_tuning_refuses_what_it_would_ignore(setting, refused):
    refused("finetune", setting, names=[setting.split("=")[0], "does not use it", "Leave it out"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("data.split=retain",), ("data.split=retain", "GradAscent", "forget and retain")),
        (("trainer.schedule=alternating",), ("trainer.schedule=alternating", "GradAscent", "on forget")),
        (("trainer=npo", "trainer.schedule=alternating"), ("trainer.schedule=alternating", "NPO")),
        (("trainer=grad_diff_official", "data.retain_per_forget=2"), ("data.retain_per_forget", "schedule=joint")),
        (("trainer=po", "trainer.args.stop_forget_loss=3"), ("trainer.args.stop_forget_loss", "other answers")),
    ],
    ids=["split", "ascent-alternating", "npo-alternating", "alternating-retain-per-forget", "relabelled-bound"],
)
def test_unlearning_refuses_what_it_would_ignore(words, names, refused):
    refused("unlearn", *words, names=names)


def test_a_forget_loss_above_its_bound_ends_the_job(unlearn):
    """An untrained model's loss is above 0.01 from the first step on."""
    folder, outcome = unlearn("trainer=grad_diff", "trainer.args.stop_forget_loss=0.01")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1]
    assert lines[0]["forget_loss"] > 0.01
    assert "Ended after step 1 of 2: the forget loss is above 0.01." in " ".join(outcome.err.split())
    assert (folder / "model").is_dir()
    assert (folder / "DONE").is_file()


def test_an_alternating_job_logs_one_side_a_step(unlearn):
    folder, outcome = unlearn("trainer=grad_diff_official")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [set(line["terms"]) for line in lines] == [{"forget"}, {"retain"}]
    assert "of forget or of retain" in " ".join(outcome.err.split())
