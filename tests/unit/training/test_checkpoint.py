import errno
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from tiny_cases import FULL, tiny_model

from mmunlearn.config import Lora, PartTuning, TrainerArgs, Tune
from mmunlearn.errors import RunError
from mmunlearn.models.families import LLAVA
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.training import checkpoint
from mmunlearn.training.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from mmunlearn.training.optimizer import build_optimizer


class State:
    """A model and an optimizer whose every step is visible in both."""

    def __init__(self, tune=FULL):
        self.model = apply_tuning(tiny_model()[0], LLAVA, tune, Lora(r=2))
        self.optimizer = build_optimizer(self.model, LLAVA, tune, TrainerArgs(learning_rate=0.1))

    def advance(self):
        for number, parameter in enumerate(self.model.parameters()):
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 0.1 + number)
        self.optimizer.step()

    def contents(self):
        weights = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        moments = {
            f"{number}.{key}": torch.as_tensor(value).clone()
            for number, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        return weights | moments

    def save(self, folder, step, *, keep=9, key="settings"):
        save_checkpoint(folder, step=step, key=key, model=self.model, optimizer=self.optimizer, keep=keep)

    def load(self, folder, *, key="settings"):
        return load_checkpoint(folder, key=key, model=self.model, optimizer=self.optimizer)


@pytest.fixture
def state():
    return State()


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("tune", [FULL, Tune(), Tune(projector=PartTuning(mode="full"))], ids=["full", "lora", "both"])
def test_weights_and_moments_come_back_bit_for_bit(tune, tmp_path):
    torch.manual_seed(0)
    first = State(tune)
    before = first.contents()
    first.advance(), first.advance()
    first.save(tmp_path, 2)
    torch.manual_seed(0)
    second = State(tune)
    assert second.load(tmp_path) == 2
    assert same(second.contents(), first.contents())
    assert not same(second.contents(), before)
    first.advance(), second.advance()
    assert same(second.contents(), first.contents())
    first_state = second.optimizer.state_dict()["state"][0]
    assert float(first_state["step"]) == 3


def test_without_a_checkpoint_nothing_happens(state, tmp_path):
    before = state.contents()
    assert state.load(tmp_path / "none") == 0
    assert same(state.contents(), before)


def test_only_trained_weights_are_written(tmp_path):
    State(Tune()).save(tmp_path, 1)
    from safetensors.torch import load_file

    assert all("lora_" in name for name in load_file(tmp_path / "step-1" / "weights.safetensors"))


def test_a_half_written_checkpoint_is_ignored(state, tmp_path):
    state.advance()
    state.save(tmp_path, 1)
    expected = state.contents()
    state.advance()
    state.save(tmp_path, 2)
    (tmp_path / "step-2" / "progress.json").unlink()  # written last
    (tmp_path / ".step-3.x1").mkdir()  # what a kill leaves behind
    (tmp_path / ".step-3.x1" / "progress.json").write_text('{"step": 3, "key": "settings"}')
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-1"]
    state.advance()
    assert state.load(tmp_path) == 1
    assert same(state.contents(), expected)


def test_progress_is_written_last(state, tmp_path, monkeypatch):
    order = []
    save_file, write_json = checkpoint.save_file, checkpoint.write_json
    monkeypatch.setattr(checkpoint, "save_file", lambda tensors, path: (order.append(path.name), save_file(tensors, path)))
    monkeypatch.setattr(checkpoint, "write_json", lambda path, value: (order.append(path.name), write_json(path, value)))
    state.save(tmp_path, 1)
    assert order[-1] == "progress.json"
    assert len(order) == 3


def test_the_newest_by_number_wins(state, tmp_path):
    for step in (2, 9, 10):
        state.save(tmp_path, step)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-2", "step-9", "step-10"]
    assert state.load(tmp_path) == 10


@pytest.mark.parametrize("keep", [1, 2])
def test_old_checkpoints_make_room(keep, state, tmp_path):
    for step in (5, 50, 500):
        state.save(tmp_path, step, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-50", "step-500"][-keep:]


def test_another_configuration_is_refused(state, tmp_path):
    state.save(tmp_path, 4, key="one")
    before = state.contents()
    with pytest.raises(RunError, match=r"step-4.*other settings.*run\.overwrite=true"):
        state.load(tmp_path, key="other")
    assert same(state.contents(), before)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_a_full_disk_keeps_the_earlier_checkpoint(failure, file, state, tmp_path, monkeypatch):
    state.advance()
    state.save(tmp_path, 1, keep=1)
    expected = state.contents()
    state.advance()
    save_file = checkpoint.save_file

    def full_disk(tensors, path):
        if path.name != file:
            return save_file(tensors, path)
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(RunError, match=r"step-2: no space left.*run\.resume=true"):
        state.save(tmp_path, 2, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1"]
    assert state.load(tmp_path) == 1
    assert same(state.contents(), expected)


def test_saving_the_same_step_again_replaces_it(state, tmp_path):
    state.save(tmp_path, 1)
    state.advance()
    state.save(tmp_path, 1)
    expected = state.contents()
    state.advance()
    state.load(tmp_path)
    assert same(state.contents(), expected)


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"", lambda content: b"\0" * len(content)])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(name, damage, state, tmp_path):
    state.advance()
    state.save(tmp_path, 1)
    expected = state.contents()
    state.advance()
    state.save(tmp_path, 2)
    file = tmp_path / "step-2" / name
    file.write_bytes(damage(file.read_bytes()))
    state.advance()
    with pytest.warns(RuntimeWarning, match=r"step-2 cannot be read.*Going on from step-1"):
        assert state.load(tmp_path) == 1
    assert same(state.contents(), expected)


def test_what_was_passed_over_goes_and_what_was_gone_on_from_stays(state, tmp_path):
    for step in (300, 400):
        state.save(tmp_path, step)
    (tmp_path / "step-300.bak").mkdir()
    (tmp_path / "step-300.bak" / "progress.json").write_text("{}")
    (tmp_path / "step-400" / "weights.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="step-400 cannot be read"):
        assert state.load(tmp_path) == 300
    state.save(tmp_path, 350, keep=1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-350"]
    assert state.load(tmp_path) == 350


def test_a_damaged_checkpoint_alone_is_a_clear_error(state, tmp_path):
    state.advance()
    state.save(tmp_path, 1)
    file = tmp_path / "step-1" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    state.advance()
    before = state.contents()
    with pytest.raises(RunError, match=r"step-1 cannot be read.*delete"):
        state.load(tmp_path)
    assert same(state.contents(), before)


def test_progress_names_step_and_key(state, tmp_path):
    state.save(tmp_path, 3, key="abc")
    assert json.loads((tmp_path / "step-3" / "progress.json").read_text()) == {"step": 3, "key": "abc"}
    shutil.rmtree(tmp_path / "step-3")
    assert complete_checkpoints(tmp_path) == []
