"""What a CUDA device must not change: numbers of training, masks and answers; and what only it can show. `make test-gpu`."""

import json
import os
import signal
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from command_cases import FULL, REPOSITORY, Outcome, run_command, run_here

from mmunlearn.models.saliency_mask import load_mask, overlap
from mmunlearn.run import Run
from mmunlearn.training.logging import StepLog

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

HALF = ("model.dtype=bfloat16", "model.peft.dropout=0")
STEPS = ("trainer.args.deepspeed=null", "trainer.args.max_steps=4", "trainer.args.logging_steps=1")


def on(device: str, *words: object) -> Outcome:
    """A verb in this process, on a device; Accelerate otherwise stays on the first one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    outcome = run_here(*words, f"run.device={device}", gpu=True)
    assert outcome.code == 0, outcome.err
    return outcome


def records(folder) -> list[dict]:
    return [json.loads(line) for line in Run(folder).metrics.read_text().splitlines()]


def both_ways(world, tmp_path, *words) -> tuple[list[dict], list[dict]]:
    """The metrics of one run on the CPU and on the GPU."""
    for device in ("cpu", "cuda"):
        on(device, "unlearn", *world.settings, *STEPS, *words, f"run.dir={tmp_path / device}")
    return records(tmp_path / "cpu"), records(tmp_path / "cuda")


@pytest.fixture(scope="module")
def mask(world, tmp_path_factory):
    """The folder of a mask of the language part, made on the GPU."""
    folder = tmp_path_factory.mktemp("mask") / "run"
    on("cuda", "saliency", *world.settings, "model.dtype=float32", "saliency.limit=8", f"run.dir={folder}")
    return folder


@pytest.mark.parametrize("trainer", ["grad_diff", "kl_min", "npo_rt", "mmunlearner"])
def test_losses_and_gradients_are_those_of_the_cpu(trainer, world, mask, tmp_path):
    """float32: the first step's terms to 1e-5, the norms of its gradient to 1e-4; later steps drift apart by rounding."""
    masked = ("model.dtype=float32", "model.tune.language.mode=full", f"trainer.method.mask={mask}")
    more = masked if trainer == "mmunlearner" else FULL
    found = both_ways(world, tmp_path, f"trainer={trainer}", "trainer.args.learning_rate=1e-4", *more)
    for number, (cpu, gpu) in enumerate(zip(*found, strict=True)):
        assert cpu["terms"].keys() == gpu["terms"].keys()
        for name, term in cpu["terms"].items():
            expected = pytest.approx(term["raw"], rel=1e-5 if number == 0 else 1e-2, abs=1e-5)
            assert gpu["terms"][name]["raw"] == expected, (number, name)
        for part, norm in cpu["gradient_norm"].items():
            assert gpu["gradient_norm"][part] == pytest.approx(norm, rel=1e-4 if number == 0 else 5e-2, abs=1e-6), part


def test_adapters_in_bfloat16_do_what_they_do_on_the_cpu(world, tmp_path):
    cpu, gpu = both_ways(world, tmp_path, "trainer=grad_diff", *HALF)
    for name, term in cpu[0]["terms"].items():
        assert gpu[0]["terms"][name]["raw"] == pytest.approx(term["raw"], rel=0.02)
    for part, norm in cpu[0]["gradient_norm"].items():
        assert gpu[0]["gradient_norm"][part] == pytest.approx(norm, rel=0.1), part


@pytest.mark.parametrize("how", ["true", "selective"])
@pytest.mark.parametrize("tuned", [HALF, ("model.dtype=float32", *FULL)], ids=["adapters", "everything"])
def test_activations_computed_again_change_nothing(tuned, how, world, tmp_path):
    """Whichever fused attention the device takes."""
    for name in ("false", how):
        recompute = f"trainer.args.gradient_checkpointing={name}"
        on("cuda", "unlearn", *world.settings, "trainer=grad_diff", *STEPS, *tuned, recompute, f"run.dir={tmp_path / name}")
    for kept, again in zip(records(tmp_path / "false"), records(tmp_path / how), strict=True):
        for name, term in kept["terms"].items():
            assert again["terms"][name]["raw"] == pytest.approx(term["raw"], rel=1e-4), name
        for part, norm in kept["gradient_norm"].items():
            assert again["gradient_norm"][part] == pytest.approx(norm, rel=1e-3, abs=1e-6), part


def test_a_mask_is_that_of_the_cpu(world, mask, tmp_path):
    on("cpu", "saliency", *world.settings, "model.dtype=float32", "saliency.limit=8", f"run.dir={tmp_path / 'cpu'}")
    assert overlap(load_mask(mask), load_mask(tmp_path / "cpu")) > 0.999


def weights(folder) -> bytes:
    model = Run(folder).model
    return b"".join(file.read_bytes() for file in sorted(model.glob("*.safetensors")))


@pytest.mark.parametrize("how", [HALF, (*FULL, "trainer.args.bf16=true")], ids=["adapters", "everything, autocast"])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(how, world, tmp_path, monkeypatch):
    words = ("unlearn", *world.settings, "trainer=grad_diff", *STEPS, *how, "trainer.args.full_determinism=true")
    words = (*words, "trainer.args.learning_rate=1e-3", "trainer.args.max_steps=6")
    on("cuda", *words, f"run.dir={tmp_path / 'undisturbed'}")
    on("cuda", *words, f"run.dir={tmp_path / 'repeated'}")
    assert weights(tmp_path / "repeated") == weights(tmp_path / "undisturbed")
    written = StepLog.write

    def stop_behind_the_third(self, **record):
        written(self, **record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = f"run.dir={tmp_path / 'stopped'}"
    with monkeypatch.context() as patched:
        patched.setattr(StepLog, "write", stop_behind_the_third)
        AcceleratorState._reset_state(reset_partial_state=True)
        outcome = run_here(*words, folder, "run.device=cuda", gpu=True)
    assert outcome.code == 143, outcome.err
    outcome = on("cuda", *words, folder, "run.resume=true")
    assert "Going on from step 3" in outcome.err
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")


def answers(folder) -> dict[str, list]:
    """By task and id, what was written and how likely each option was."""
    found = {}
    for file in sorted((folder / "predictions").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[f"{file.stem}/{row['id']}"] = [row["text"], row["smallest_gap"], row["option_log_likelihoods"]]
    return found


def test_answers_are_those_of_the_cpu_whatever_the_batch_size(world, tmp_path):
    asked = ("evaluate", *world.settings, "model.dtype=float32", "evaluation.limit=12", "evaluation.splits=[forget,retain]")
    ways = {"cpu": ("cpu", 16), "many": ("cuda", 16), "single": ("cuda", 1)}
    found = {}
    for name, (device, size) in ways.items():
        on(device, *asked, f"evaluation.batch_size={size}", f"run.dir={tmp_path / name}")
        found[name] = answers(tmp_path / name)
    assert len(found["cpu"]) > 40
    for name in ("many", "single"):
        assert found[name].keys() == found["cpu"].keys()
        for key, (text, gap, options) in found["cpu"].items():
            assert found[name][key][0] == text or gap < 1e-3, (name, key)
            assert found[name][key][2] == pytest.approx(options, abs=1e-3), (name, key)


def test_four_bits_are_trained_saved_opened_and_asked(world, tmp_path):
    pytest.importorskip("bitsandbytes")
    nf4 = ("model.quantise=nf4", *HALF)
    on("cuda", "unlearn", *world.settings, "trainer=grad_diff", *STEPS, *nf4, f"run.dir={tmp_path / 'run'}")
    few = ("evaluation.limit=4", "evaluation.splits=[forget]", f"run.dir={tmp_path / 'asked'}")
    on("cuda", "evaluate", *world.data, f"model.path={tmp_path / 'run' / 'model'}", *few)
    assert answers(tmp_path / "asked")


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_rounded_weights_are_asked(how, world, tmp_path):
    pytest.importorskip("torchao")
    few = ("evaluation.limit=4", "evaluation.splits=[forget]")
    for device in ("cpu", "cuda"):
        on(
            device,
            "evaluate",
            *world.settings,
            f"model.quantise={how}",
            "model.dtype=float32",
            *few,
            f"run.dir={tmp_path / device}",
        )
    cpu, gpu = answers(tmp_path / "cpu"), answers(tmp_path / "cuda")
    for key, (_, _, options) in cpu.items():
        assert gpu[key][2] == pytest.approx(options, abs=2e-2), key


def started(*words: object, processes: bool = False) -> Outcome:
    """train.py as a process of its own, which sees the GPU."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "1") if processes else ()
    script = (sys.executable, *launcher, "train.py")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return run_command(*words, cwd=REPOSITORY, script=script, CUDA_VISIBLE_DEVICES=visible)


def test_shards_on_a_gpu_give_a_whole_model(world, tmp_path):
    """FSDP2 through NCCL, in one process: nothing is shared, but every call is made."""
    fsdp = ("trainer.args.deepspeed=null", "trainer.args.fsdp=true", "trainer.args.max_steps=2")
    words = ("--config-name", "default", "trainer=grad_diff", *world.settings, *HALF, *fsdp, f"run.dir={tmp_path / 'run'}")
    outcome = started(*words, processes=True)
    assert outcome.code == 0, outcome.err
    assert weights(tmp_path / "run")


def test_the_preset_with_zero3_runs(world, tmp_path):
    """`trainer=grad_diff` as it stands: configs/deepspeed/zero3.json with weights and optimizer in CPU memory."""
    pytest.importorskip("deepspeed")
    words = ("--config-name", "default", "trainer=grad_diff", *world.settings, *HALF, "trainer.args.max_steps=2")
    outcome = started(*words, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    assert "is not used" not in outcome.err
    assert weights(tmp_path / "run")
