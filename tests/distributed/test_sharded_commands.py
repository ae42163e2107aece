"""A verb started on two processes, by torchrun and by `accelerate launch`, shards the model and saves it whole."""

import sys
from pathlib import Path

import pytest
from launching import all_end_well, free_port, on_ranks, start
from safetensors.torch import load_file
from tiny_cases import relative_difference

from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people_files import BENCHMARK_FOLDER, TRAIN_FOLDER, write_people
from mmunlearn.models.load import save
from mmunlearn.models.tiny import TinySize, build_tiny

pytestmark = pytest.mark.thorough

TRAIN = Path(__file__).parents[2] / "train.py"
SIZE = TinySize(
    image_size=32, patch_size=16, vision_width=32, vision_layers=3, width=288, layers=2, heads=2, vocabulary=500, max_length=320
)
STEPS = ("trainer.args.max_steps=3", "trainer.args.save_steps=2", "trainer.args.learning_rate=1e-3")
FULL = ("model.dtype=float32", *(f"model.tune.{part}.mode=full" for part in ("vision", "projector", "language")))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The settings that name people and model."""
    root = tmp_path_factory.mktemp("world")
    write_people(root, seed=0, num_people=8, num_public_figures=2, num_holdout=1, num_general_faces=2, image_size=32)
    data = {"root": root / BENCHMARK_FOLDER, "train_root": root / TRAIN_FOLDER}
    splits = MLLMUBench(**{name: str(path) for name, path in data.items()}, forget_ratio="15").splits()
    texts = [text for example in splits.full for text in (example.question, example.answer)]
    save(*build_tiny(texts, seed=0, size=SIZE), root / "untrained", {"role": "vanilla", "method": "none"})
    named = [f"data.{name}={path}" for name, path in data.items()]
    return [str(TRAIN), "--config-name", "default", *named, f"model.path={root / 'untrained'}", *STEPS, *FULL]


KL = ("trainer=grad_diff", "trainer.args.deepspeed=null", "trainer.method.retain_loss=kl")


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory):
    """The model folders of the same run, replicated in one process and sharded over two with selective checkpointing."""
    root = tmp_path_factory.mktemp("runs")
    one = [sys.executable, *words, *KL, "trainer.args.per_device_train_batch_size=4", f"run.dir={root / 'one'}"]
    sharded = ("trainer.args.fsdp=true", "trainer.args.gradient_checkpointing=selective")
    two = [*words, *KL, "trainer.args.per_device_train_batch_size=2", *sharded, f"run.dir={root / 'two'}"]
    all_end_well([start(one), start(on_ranks(two))])
    return root / "one", root / "two"


def test_torchrun_shards_and_saves_what_one_process_saves(runs):
    one, two = (load_file(folder / "model/model.safetensors") for folder in runs)
    assert relative_difference(two, one) < 1e-4  # AdamW turns the rounding of small gradients into whole steps
    assert (runs[1] / "DONE").is_file()
    assert not (runs[1] / "checkpoints").exists()
    assert {file.name for file in (runs[1] / "model").iterdir()} == {file.name for file in (runs[0] / "model").iterdir()}


def refusal(command):
    """What a run that must not start says."""
    process = start(command)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    return " ".join(output.split())


def test_fsdp_in_a_single_process_is_refused_before_anything_is_written(words, tmp_path):
    said = refusal([sys.executable, *words, *KL, "trainer.args.fsdp=true", f"run.dir={tmp_path / 'run'}"])
    assert "Start it with `torchrun" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_accelerate_launch_starts_it_too(words, runs, tmp_path):
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(free_port())]
    batch = "trainer.args.per_device_train_batch_size=2"
    all_end_well([start([*launcher, *words, *KL, batch, "trainer.args.fsdp=true", f"run.dir={tmp_path / 'run'}"])])
    found, expected = (load_file(folder / "model/model.safetensors") for folder in (tmp_path / "run", runs[1]))
    assert all(found[name].equal(value) for name, value in expected.items())
