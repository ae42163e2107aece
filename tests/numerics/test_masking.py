"""How a saliency mask acts on training: exact on the terms that it masks, absent from the others, and proved at the end."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_cases import FULL, LORA, GradientCatcher, Setup, flat, random_mask, relative_difference, step_gradients, training_of

from mmunlearn.config import Lora, PartTuning, Tune
from mmunlearn.config_enums import Mode, Schedule, Scope
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.methods.mmunlearner import MMUnlearner
from mmunlearn.methods.salun import SalUn
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import LLAVA, Part, bare_name
from mmunlearn.models.saliency_mask import mask_of
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.run import read_json_lines
from mmunlearn.training.checkpoint import load_checkpoint, save_checkpoint
from mmunlearn.training.engine import Replicated
from mmunlearn.training.loop import Windows, accumulate, with_step_totals
from mmunlearn.training.masking import GradientMask, Unmoved
from mmunlearn.training.optimizer import build_optimizer

W = {"forget_weight": 0.7, "retain_weight": 1.3}
LANGUAGE = Tune(language=PartTuning(mode=Mode.full))
INSIDE = "model.language_model.layers.0.mlp.up_proj.weight"
ELSEWHERE = "model.multi_modal_projector.linear_1.weight"


@pytest.fixture(scope="module")
def mask(pristine):
    return random_mask(pristine[0])


@pytest.fixture
def setup(pristine, data, mask, tmp_path):
    """A run on a fresh copy of the model."""

    def make(method, folder=tmp_path, **settings):
        return Setup(method, data, copy.deepcopy(pristine[0]), pristine[1], folder, **{"mask": mask, **settings})

    return make


def gradients_by_term(training):
    """The gradient of each term over the micro-batches of the first step."""
    window = with_step_totals(Windows(training.plan, training.data, training.encoder)[0], training.accelerator)
    found = {}
    for term in training.method.terms():
        training.model.zero_grad(set_to_none=True)
        accumulate(training.model, (term,), window, training.prepared, training.engine)
        found[term.name] = {name: p.grad.clone() for name, p in training.model.named_parameters() if p.grad is not None}
    training.model.zero_grad(set_to_none=True)
    return found


def bits(tensor):
    """To compare -0 and 0 as different."""
    return tensor.detach().view(torch.int32)


def assert_masked(found, unmasked, mask):
    """Exactly 0 outside; inside bit-equal."""
    assert found.keys() == unmasked.keys()
    for name, gradient in found.items():
        inside = mask.tensor(name)
        assert torch.equal(bits(gradient[inside]), bits(unmasked[name][inside])), name
        assert torch.equal(gradient[~inside], torch.zeros_like(gradient[~inside])), name
    assert any(bool((value[~mask.tensor(name)] != 0).any()) for name, value in unmasked.items())


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "activations-recomputed"])
def test_scope_forget_masks_the_forget_term_alone(recompute, setup, mask):
    trainings = [training_of(setup(each, batch_size=4, accumulation=2)) for each in (GradDiff(**W), MMUnlearner(**W))]
    for training in trainings if recompute else ():
        checkpoint_activations(training.model)
        training.model.train()
    plain, masked = map(gradients_by_term, trainings)
    assert_masked(masked["forget"], plain["forget"], mask)
    assert masked["retain"].keys() == plain["retain"].keys()
    assert all(torch.equal(bits(value), bits(plain["retain"][name])) for name, value in masked["retain"].items())


def test_scope_update_masks_both_terms(setup, mask):
    plain, masked = (
        gradients_by_term(training_of(setup(each))) for each in (GradDiff(**W), MMUnlearner(**W, scope=Scope.update))
    )
    for term in ("forget", "retain"):
        assert_masked(masked[term], plain[term], mask)


@pytest.mark.parametrize("scope", [Scope.forget, Scope.update])
def test_a_joint_step_is_the_sum_of_its_terms(scope, setup, mask):
    """Mask first, then add: the mask must not reach what another term has put into the same tensor."""
    # In one piece: with pictures and texts apart the same numbers would be added in another order.
    terms = gradients_by_term(training_of(setup(GradDiff(**W), by_modality=False)))
    (found,) = step_gradients(setup(MMUnlearner(**W, scope=scope), by_modality=False), 1)
    for name, gradient in found.items():
        inside = mask.tensor(name)
        retain = terms["retain"][name]
        expected = terms["forget"][name].masked_fill(~inside, 0) + (
            retain if scope == Scope.forget else retain.masked_fill(~inside, 0)
        )
        assert torch.equal(gradient, expected), name


def test_a_step_about_one_side_masks_forget_and_not_retain(setup, mask):
    plain, masked = (
        step_gradients(setup(each, schedule=Schedule.alternating), 2) for each in (GradDiff(**W), MMUnlearner(**W))
    )
    assert_masked(masked[0], plain[0], mask)
    assert torch.equal(flat(masked[1]), flat(plain[1]))


# --- clipping --------------------------------------------------------------------------------------------------------


def through(mask, gradient):
    return {name: value * mask.tensor(name) for name, value in gradient.items()}


def clipped(gradient, max_norm):
    factor = min(1.0, max_norm / float(flat(gradient).norm()))
    return {name: value * factor for name, value in gradient.items()}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("before", [True, False], ids=["clip-then-mask", "mask-then-clip"])
def test_clipping_before_or_after_masking(before, accumulation, setup, mask, tmp_path):
    split = {"batch_size": 8 // accumulation, "accumulation": accumulation, "schedule": Schedule.alternating}
    plain = step_gradients(setup(GradDiff(**W), **split), 2)
    norm = float(flat(plain[0]).norm())
    max_norm = 0.25 * norm
    method = MMUnlearner(**W, clip_before_mask=before)
    found = step_gradients(setup(method, tmp_path / "run", args={"max_grad_norm": max_norm}, **split), 2)
    ways = {True: through(mask, clipped(plain[0], max_norm)), False: clipped(through(mask, plain[0]), max_norm)}
    assert relative_difference(ways[True], ways[False]) > 0.1
    assert relative_difference(found[0], ways[before]) < 1e-6
    assert relative_difference(found[1], clipped(plain[1], max_norm)) < 1e-6, "the retain step is clipped as ever"
    line = read_json_lines(tmp_path / "run" / "metrics.jsonl")[0]
    logged = torch.tensor(list(line["gradient_norm"].values())).norm().item()
    assert logged == pytest.approx(norm if before else float(flat(through(mask, plain[0])).norm()), rel=1e-5)


def test_with_scope_update_a_joint_step_can_be_clipped_before_masking(setup, mask):
    (plain,) = step_gradients(setup(GradDiff(**W)), 1)
    max_norm = 0.25 * float(flat(plain).norm())
    method = MMUnlearner(**W, scope=Scope.update, clip_before_mask=True)
    (found,) = step_gradients(setup(method, args={"max_grad_norm": max_norm}), 1)
    assert relative_difference(found, through(mask, clipped(plain, max_norm))) < 1e-6


def test_clipping_before_masking_is_refused_where_both_sides_share_a_step(setup):
    with pytest.raises(ConfigError, match=r"clip_before_mask.*schedule=alternating"):
        training_of(setup(MMUnlearner(clip_before_mask=True)))


@pytest.fixture
def engine(setup, mask):
    """An engine and its model."""

    def make(mask=mask, **settings):
        chosen = setup(GradDiff())
        model = apply_tuning(chosen.model, LLAVA, FULL, Lora())
        gradients = GradientMask(model, mask, **settings) if mask is not None else None
        training = training_of(replace(chosen, model=model))
        return model, Replicated(model, LLAVA, GradientCatcher(model, LLAVA), training.accelerator, gradients)

    return make


def test_the_engine_refuses_to_mask_a_sum_of_masked_and_free_terms(engine):
    model, chosen = engine(after_clipping=True)
    chosen.backward(model.lm_head.weight.square().sum(), masked=True)
    chosen.backward(model.lm_head.weight.sum(), masked=False)
    with pytest.raises(RunError, match=r"clip_before_mask.*schedule=alternating"):
        chosen.step(1.0)


def test_the_engine_forgets_what_kind_the_last_step_was(engine, mask):
    model, chosen = engine(after_clipping=True)
    for masked in (False, True, False):
        chosen.backward(model.lm_head.weight.square().sum(), masked=masked)
        expected = 2 * model.lm_head.weight.detach()
        chosen.step(0.0)
        gradient = chosen.optimizer.caught[-1]["lm_head.weight"]
        assert torch.equal(gradient, expected * mask.tensor("lm_head.weight") if masked else expected)


def test_a_masked_term_without_a_mask_is_an_error(engine, setup):
    model, chosen = engine(mask=None)
    with pytest.raises(RunError, match=r"no mask.*trainer\.method\.mask"):
        chosen.backward(model.lm_head.weight.sum(), masked=True)
    assert model.lm_head.weight.grad is None
    for method in (MMUnlearner(), SalUn()):
        with pytest.raises(ConfigError, match=rf"trainer\.method\.mask.*{type(method).__name__}.*mmunlearn saliency"):
            training_of(setup(method, mask=None))


# --- twenty steps ----------------------------------------------------------------------------------------------------

STEPS = 20
ARGS = {"max_steps": STEPS, "learning_rate": 3e-3, "max_grad_norm": 1.0, "warmup_steps": 2}


class KilledError(Exception):
    """Stands for a kill."""


def bare_weights(model):
    """Weights by bare name, an adapter merged in."""
    whole = copy.deepcopy(model)
    whole = whole.merge_and_unload() if hasattr(whole, "merge_and_unload") else whole
    return {bare_name(name): value for name, value in whole.named_parameters()}


@pytest.mark.parametrize(
    "stopped", [pytest.param(False, marks=pytest.mark.thorough), True], ids=["through", "stopped-and-resumed"]
)
@pytest.mark.parametrize(
    ("method", "tune"),
    [
        (MMUnlearner(scope=Scope.update), FULL),
        pytest.param(MMUnlearner(scope=Scope.update, clip_before_mask=True), LANGUAGE, marks=pytest.mark.thorough),
        pytest.param(SalUn(), FULL, marks=pytest.mark.thorough),
        (MMUnlearner(scope=Scope.update), LORA),
    ],
    ids=["full", "clip-before-mask-language", "salun", "lora"],
)
def test_with_scope_update_nothing_outside_the_mask_moves_by_one_bit(method, tune, stopped, setup, mask, pristine, tmp_path):
    def start(save_steps):
        def save(step):
            save_checkpoint(tmp_path / "states", step=step, key="k", model=training.model, optimizer=training.optimizer, keep=1)
            raise KilledError

        torch.manual_seed(2)
        chosen = setup(method, tune=tune, lora=Lora(r=4, alpha=16, dropout=0.1), batch_size=2, save=save)
        chosen.args, chosen.optimizer = {**ARGS, "save_steps": save_steps}, build_optimizer
        with torch.no_grad():
            chosen.model.lm_head.weight[::2] = -0.0  # the sign of a zero is a bit too
        before.update({name: value.detach().clone() for name, value in chosen.model.named_parameters()})
        training = training_of(chosen)
        return training

    before = {}
    training, first = start(7 if stopped else 0), 0
    if stopped:
        with pytest.raises(KilledError):
            training.run()
        training = start(0)
        first = load_checkpoint(tmp_path / "states", key="k", model=training.model, optimizer=training.optimizer)
        assert first == 7
    training.run(first_step=first)
    training.masking.unmoved.check(training.model)
    trained = {
        bare_name(name).replace(".lora_A.default", "").replace(".lora_B.default", "")
        for name, parameter in training.model.named_parameters()
        if parameter.requires_grad
    }
    moved = 0
    for name, value in bare_weights(training.model).items():
        outside = ~mask.tensor(name) if name in trained else torch.ones_like(mask.tensor(name))
        assert torch.equal(bits(value)[outside], bits(before[name])[outside]), name
        moved += int((value != before[name]).sum())
    total = sum(mask.selected(name) for name in trained)
    assert moved > 0.5 * total, "inside they do move"


def test_with_scope_forget_retain_moves_weights_outside_the_mask(setup, mask, pristine):
    training = training_of(setup(MMUnlearner(), args=ARGS, optimizer=build_optimizer))
    training.run()
    assert training.masking.unmoved is None
    before = dict(pristine[0].named_parameters())
    for name, value in training.model.named_parameters():
        if value.requires_grad and name in (INSIDE, ELSEWHERE):
            assert (value != before[name])[~mask.tensor(name)].float().mean() > 0.9


def test_weights_outside_the_chosen_modules_are_frozen(setup, pristine):
    own = random_mask(pristine[0], parts=(Part.language,))
    training = training_of(setup(MMUnlearner(), mask=own, tune=LANGUAGE, args={"max_steps": 2}, optimizer=build_optimizer))
    training.run()
    before = dict(pristine[0].named_parameters())
    moved = {name for name, value in training.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= set(own.bits)


# --- what is refused -------------------------------------------------------------------------------------------------


def changed(mask, **tensors):
    """The mask with some tensors replaced; None: without it."""
    every = {name: mask.tensor(name) for name in mask.bits} | {name.replace("__", "."): v for name, v in tensors.items()}
    return mask_of({name: value for name, value in every.items() if value is not None}, mask.card)


def language_filled(mask, value):
    names = [name for name in mask.bits if not name.startswith(("model.vision_tower", "model.multi_modal"))]
    return changed(mask, **{name: torch.full(mask.shapes[name], value) for name in names})


MISFITS = {
    "all-true": (lambda mask: language_filled(mask, True), r"every weight of the language part \(.*lm_head\.weight.*"),
    "all-false": (lambda mask: language_filled(mask, False), r"no weight of the language part \(.*lm_head\.weight.*"),
    "unknown-name": (lambda mask: changed(mask, model__somewhere=torch.ones(3) > 0), r"model\.somewhere is not in it"),
    "other-shape": (lambda mask: changed(mask, **{INSIDE: torch.ones(3) > 0}), rf"{INSIDE} is not in it or of another shape"),
    "uncovered": (lambda mask: changed(mask, **{ELSEWHERE: None}), rf"says nothing about {ELSEWHERE}"),
}


@pytest.mark.parametrize("tune", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", MISFITS)
def test_a_mask_that_does_not_fit_is_refused_with_names(kind, tune, setup, mask):
    change, message = MISFITS[kind]
    if tune is LORA:
        message = message.replace(r"lm_head\.weight", r"k_proj\.weight")  # an adapter leaves the head alone
    with pytest.raises(ConfigError, match=message):
        training_of(setup(MMUnlearner(scope=Scope.update), mask=change(mask), tune=tune))


def test_a_mask_of_other_modules_than_those_tuned_is_refused(setup, pristine):
    own = random_mask(pristine[0], parts=(Part.language,))
    with pytest.raises(ConfigError, match=r"says nothing about model\.multi_modal_projector"):
        training_of(setup(MMUnlearner(), mask=own, tune=FULL))


@pytest.mark.parametrize("method", [MMUnlearner(scope=Scope.update), SalUn()], ids=["MMUnlearner", "SalUn"])
def test_weight_decay_is_refused_where_it_would_move_weights(method, setup):
    with pytest.raises(ConfigError, match=r"weight_decay=0\.01 would move weights outside the mask"):
        training_of(setup(method, args={"weight_decay": 0.01}))


def test_weight_decay_is_allowed_with_scope_forget(setup):
    training_of(setup(MMUnlearner(), args={"weight_decay": 0.01}))


def test_adapters_need_scope_update_and_no_clipping_before_the_mask(setup):
    with pytest.raises(ConfigError, match=r"scope=forget together with LoRA"):
        training_of(setup(MMUnlearner(), tune=LORA))
    with pytest.raises(ConfigError, match=r"clip_before_mask=true is not possible with LoRA"):
        training_of(setup(MMUnlearner(scope=Scope.update, clip_before_mask=True), tune=LORA))


def test_a_mask_file_that_is_not_there_is_named(setup, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*there is no such mask"):
        training_of(setup(MMUnlearner(mask=str(tmp_path / "nowhere")), mask=None))


# --- the proof -------------------------------------------------------------------------------------------------------


def flip_lowest_bit(tensor, place):
    with torch.no_grad():
        tensor.data.view(-1).view(torch.int32)[place] ^= 1


@pytest.mark.parametrize("tune", [FULL, LANGUAGE, LORA], ids=["full", "language", "lora"])
def test_the_proof_finds_one_flipped_bit_and_passes_over_what_lies_inside(tune, model, mask):
    tuned = apply_tuning(model, LLAVA, tune, Lora(r=2))
    unmoved = Unmoved(tuned, mask)
    named = {bare_name(name): parameter for name, parameter in tuned.named_parameters()}
    unmoved.check(tuned)
    for name in (INSIDE, ELSEWHERE, "model.vision_tower.encoder.layers.2.mlp.fc1.weight"):
        inside = mask.tensor(name).view(-1).nonzero()[:, 0].tolist()
        outside = (~mask.tensor(name)).view(-1).nonzero()[:, 0].tolist()
        for place in (outside[0], outside[-1]):
            flip_lowest_bit(named[name], place)
            with pytest.raises(RunError, match=rf"moved in 1 tensors \({name}\)"):
                unmoved.check(tuned)
            flip_lowest_bit(named[name], place)
            unmoved.check(tuned)
        flip_lowest_bit(named[name], inside[3])
        if named[name].requires_grad:
            unmoved.check(tuned)
        else:
            with pytest.raises(RunError, match=name):  # frozen: nothing of it may move
                unmoved.check(tuned)
        flip_lowest_bit(named[name], inside[3])
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.data += 1 if "lora_" in name else mask.tensor(bare_name(name))
    unmoved.check(tuned)
