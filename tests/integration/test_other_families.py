"""The verbs on models other than LLaVA: the two whose inputs differ most from it."""

import json

import pytest
from command_cases import FULL, SIZE, run_here

from mmunlearn.models.load import save
from mmunlearn.models.tiny_families import build_tiny_family

ONE_STEP = ("trainer.args.max_steps=1", "trainer.args.per_device_train_batch_size=2", "trainer.args.logging_steps=1")
FEW = ("model.dtype=float32", "evaluation.limit=2", "evaluation.splits=[forget]", "evaluation.batch_size=3")


@pytest.fixture(scope="module", params=["qwen2_vl", pytest.param("mllama", marks=pytest.mark.thorough)])
def untrained(request, world, tmp_path_factory):
    """A folder with an untrained model of a family that has seen the words of the people."""
    texts = [text for example in world.benchmark().splits().full for text in (example.question, example.answer)]
    folder = tmp_path_factory.mktemp(request.param) / "model"
    save(*build_tiny_family(request.param, texts, seed=0, size=SIZE), folder, {"role": "base", "method": "none"})
    return folder


def run(*words):
    done = run_here(*words)
    assert done.code == 0, done.err[-3000:]
    return done


@pytest.mark.thorough
def test_learn_forget_and_evaluate(untrained, world, tmp_path):
    vanilla, unlearned, asked = (tmp_path / name for name in ("vanilla", "unlearned", "asked"))
    run("finetune", *world.data, f"model.path={untrained}", f"run.dir={vanilla}", *ONE_STEP, *FULL)
    done = run(
        *("unlearn", "trainer=grad_diff", *world.data, f"model.path={vanilla / 'model'}", f"run.dir={unlearned}", *ONE_STEP),
        *("model.dtype=float32", *(f"model.tune.{part}.mode=lora" for part in ("vision", "projector", "language"))),
    )
    assert "Weights that change" in done.err
    run("evaluate", *world.data, f"model.path={unlearned / 'model'}", f"run.dir={asked}", *FEW)
    tasks = json.loads((asked / "results.json").read_text())["tasks"]
    assert {"forget_image_choice", "forget_text_choice"} <= tasks.keys()
    assert all(metrics["accuracy"]["count"] > 0 for name, metrics in tasks.items() if name.endswith("choice"))


def test_a_mask_is_made_and_used(untrained, world, tmp_path):
    mask, unlearned = tmp_path / "mask", tmp_path / "unlearned"
    some = ("saliency.modules=both", "saliency.limit=2", "saliency.batch_size=2", "model.dtype=float32")
    run("saliency", *world.data, f"model.path={untrained}", f"run.dir={mask}", *some)
    words = ("unlearn", "trainer=mmunlearner", *world.data, f"model.path={untrained}", f"run.dir={unlearned}", *ONE_STEP, *FULL)
    run(*words, f"trainer.method.mask={mask}")
    assert (unlearned / "model" / "config.json").is_file()
