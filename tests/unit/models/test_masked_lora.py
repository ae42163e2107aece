import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_cases import LORA, batch_of, make_examples
from torch.func import functional_call
from transformers import AutoModelForImageTextToText

from mmunlearn.config import Lora, Mode, ModelConfig, PartTuning, Tune
from mmunlearn.errors import ConfigError
from mmunlearn.models.families import LLAVA
from mmunlearn.models.load import load, model_fingerprint, save
from mmunlearn.models.masked_lora import adapter_mask, mask_adapter
from mmunlearn.models.saliency_mask import SaliencyMask, load_mask, mask_of, save_mask
from mmunlearn.models.tuning import apply_tuning, checkpoint_activations

SETTINGS = Lora(r=4, alpha=10, dropout=0.0)
CARD = {"rule": "ratio", "threshold": 1.0}
BELOW, AT_ONCE = "model.language_model.layers.0.mlp.up_proj.weight", "model.multi_modal_projector.linear_1.weight"


def bare(name):
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def adapted_shapes(model):
    """Of the weights that have an adapter, by their names without it."""
    return {bare(name): tuple(p.shape) for name, p in model.named_parameters() if name.endswith(".base_layer.weight")}


def random_mask(model, seed=0, share=0.4, extra=()):
    """Some weights of every adapted matrix."""
    dice = torch.Generator().manual_seed(seed)
    shapes = adapted_shapes(model) | dict(extra)
    return mask_of({name: torch.rand(shape, generator=dice) < share for name, shape in shapes.items()}, CARD)


def shaken(model, seed=1, std=0.1):
    """Give B values as training does; without them an adapter changes nothing."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=dice))
    return model


def tuned_model(model, settings=SETTINGS, tune=LORA):
    return shaken(apply_tuning(model, LLAVA, tune, settings).eval())


def logits(model, processor):
    with torch.no_grad():
        return model(**batch_of(processor, *make_examples("check", 4)).inputs).logits


def away(found, expected):
    """Norm of the difference over the norm of what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def factors(tuned):
    """A and B of every adapted weight, the parameters themselves."""
    own = dict(tuned.named_parameters())
    find = {bare(name): name.removesuffix("base_layer.weight") for name in own if name.endswith(".base_layer.weight")}
    return {weight: [own[f"{layer}lora_{kind}.default.weight"] for kind in "AB"] for weight, layer in find.items()}


def written_out(plain, tuned, mask, pairs):
    """The weights that the masked adapter stands for: W + m * s * B A."""
    own = dict(plain.named_parameters())
    scaling = SETTINGS.alpha / SETTINGS.r
    return {name: own[name] + mask.tensor(name) * (scaling * (b @ a)) for name, (a, b) in pairs.items()}


@pytest.fixture
def plain(pristine):
    """The model without any adapter."""
    return copy.deepcopy(pristine[0]).eval()


@pytest.fixture
def masked(model):
    """The same model with a masked adapter that changes the answers."""
    tuned = tuned_model(model)
    mask_adapter(tuned, random_mask(tuned))
    return tuned


# --- what it computes ------------------------------------------------------------------------------------------------


def test_logits_are_those_of_a_model_with_the_masked_weights(plain, masked, processor):
    mask = adapter_mask(masked)
    expected = copy.deepcopy(plain)
    with torch.no_grad():
        for name, weight in written_out(plain, masked, mask, factors(masked)).items():
            expected.get_parameter(name).copy_(weight)
    assert (logits(masked, processor) - logits(plain, processor)).abs().max() > 0.1
    torch.testing.assert_close(logits(masked, processor), logits(expected, processor), rtol=0, atol=2e-5)


def test_gradients_of_the_adapter_are_those_of_the_formula(plain, masked, processor):
    """The whole model in float64, with torch's own gradient through W + m * s * B A."""
    masked, plain = masked.double(), plain.double().requires_grad_(False)
    batch = batch_of(processor, *make_examples("check", 4))
    inputs = batch.inputs | {"pixel_values": batch.inputs["pixel_values"].double()}
    masked(**inputs).logits.square().mean().backward()
    pairs = {name: [tensor.detach().clone().requires_grad_() for tensor in pair] for name, pair in factors(masked).items()}
    weights = written_out(plain, masked, adapter_mask(masked), pairs)
    functional_call(plain, weights, kwargs=inputs).logits.square().mean().backward()
    for name, pair in factors(masked).items():
        for found, expected in zip(pair, pairs[name], strict=True):
            assert expected.grad.abs().max() > 0, name
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-14)
    assert not [n for n, p in masked.named_parameters() if p.requires_grad and "lora_" not in n]


def test_another_mask_and_no_mask_give_other_answers(model, processor):
    tuned = tuned_model(model)
    unmasked = logits(tuned, processor)
    found = [unmasked]
    for seed in (0, 1):
        mask_adapter(tuned, random_mask(tuned, seed))
        assert all((logits(tuned, processor) - other).abs().max() > 0.05 for other in found)
        found.append(logits(tuned, processor))


def test_without_the_adapter_it_is_the_model_below_bit_for_bit(plain, masked, processor):
    with masked.disable_adapter():
        assert torch.equal(logits(masked, processor), logits(plain, processor))
    assert not torch.equal(logits(masked, processor), logits(plain, processor))


def test_recomputed_activations_give_the_same_gradient(masked, processor):
    batch = batch_of(processor, *make_examples("check", 4))

    def gradients():
        masked.zero_grad()
        masked.train()(**batch.inputs).logits.square().mean().backward()
        return [tensor.grad.clone() for pair in factors(masked).values() for tensor in pair]

    before = gradients()
    checkpoint_activations(masked)
    for found, expected in zip(gradients(), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_dropout_acts_on_the_adapter_alone_and_follows_the_seed(model, processor, plain):
    tuned = apply_tuning(model, LLAVA, LORA, Lora(r=4, alpha=10, dropout=0.5)).train()
    mask_adapter(tuned, random_mask(tuned))
    torch.testing.assert_close(logits(tuned, processor), logits(plain, processor), rtol=0, atol=0)  # B = 0
    shaken(tuned)

    def drawn(seed):
        torch.manual_seed(seed)
        return logits(tuned, processor)

    assert torch.equal(drawn(1), drawn(1))
    assert (drawn(1) - drawn(2)).abs().max() > 0.01
    assert (drawn(1) - logits(tuned.eval(), processor)).abs().max() > 0.01
    assert torch.equal(drawn(1), drawn(2)), "no dropout outside training"


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision(how, model, processor):
    """bfloat16 has 8 bits: logits and gradients agree with float32 to a few per cent."""
    tuned = tuned_model(model)
    mask_adapter(tuned, random_mask(tuned))
    batch = batch_of(processor, *make_examples("check", 4))

    def run(other):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast" and other is not tuned):
            result = other(**batch.inputs).logits.float()
        result.square().mean().backward()
        return [result.detach(), *(tensor.grad for pair in factors(other).values() for tensor in pair)]

    half = copy.deepcopy(tuned)
    if how == "weights":
        for name, parameter in half.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
    for number, (found, expected) in enumerate(zip(run(half), run(tuned), strict=True)):
        assert found.dtype is torch.float32
        assert away(found, expected) < (0.05 if number == 0 else 0.15)


# --- merging ---------------------------------------------------------------------------------------------------------


def bits_of(tensor):
    return tensor.detach().contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("safe", [True, False], ids=["safe", "in place"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merging_moves_no_weight_outside_the_mask_by_one_bit(safe, dtype, model, processor):
    with torch.no_grad():
        model.get_parameter(BELOW).view(-1)[::3] = -0.0
    plain = copy.deepcopy(model).to(dtype).eval()
    tuned = tuned_model(model.to(dtype))
    mask = random_mask(tuned)
    mask_adapter(tuned, mask)
    expected, targets = logits(tuned, processor), written_out(plain.float(), tuned, mask, factors(tuned))
    merged = tuned.merge_and_unload(safe_merge=safe)
    own = dict(merged.named_parameters())
    for name, before in plain.to(dtype).named_parameters():
        if name not in mask.bits:
            assert torch.equal(bits_of(own[name]), bits_of(before)), name
            continue
        inside = mask.tensor(name)
        assert torch.equal(bits_of(own[name][~inside]), bits_of(before[~inside])), name
        assert (own[name][inside] != before[inside]).float().mean() > 0.9
        torch.testing.assert_close(
            own[name], targets[name].to(dtype), rtol=1e-2 if dtype is torch.bfloat16 else 1e-6, atol=1e-7
        )
    if dtype is torch.float32:
        torch.testing.assert_close(logits(merged, processor), expected, rtol=0, atol=2e-5)
    else:  # two ways of rounding
        assert away(logits(merged, processor), expected) < 0.05
    assert adapter_mask(merged) is None


def test_merging_in_half_precision_sums_in_float32(model):
    """Each merged weight is the bfloat16 number nearest to W + m * s * B A, but for a few that lie in the middle of two."""
    plain = copy.deepcopy(model).bfloat16()
    tuned = tuned_model(model.bfloat16())
    mask = random_mask(tuned)
    mask_adapter(tuned, mask)
    pairs = {name: [tensor.double() for tensor in pair] for name, pair in factors(tuned).items()}
    exact = written_out(plain.double(), tuned, mask, pairs)
    merged = tuned.merge_and_unload()
    for name, target in exact.items():
        assert (merged.get_parameter(name) == target.bfloat16()).float().mean() > 0.998, name


def test_unmerging_restores_the_weights(masked, plain, processor):
    expected = logits(masked, processor)
    masked.merge_adapter()
    torch.testing.assert_close(logits(masked, processor), expected, rtol=0, atol=2e-5)
    masked.unmerge_adapter()
    torch.testing.assert_close(logits(masked, processor), expected, rtol=0, atol=2e-5)
    mask, own = adapter_mask(masked), {bare(name): parameter for name, parameter in masked.named_parameters()}
    for name in mask.bits:
        before = plain.get_parameter(name)
        torch.testing.assert_close(own[name], before, rtol=0, atol=1e-6)
        outside = ~mask.tensor(name)
        assert torch.equal(own[name][outside], before[outside])


# --- the mask on the model -------------------------------------------------------------------------------------------


def test_the_model_gives_back_its_mask(model):
    tuned = tuned_model(model)
    assert adapter_mask(tuned) is None
    mask = random_mask(tuned, extra={"lm_head.weight": tuple(model.lm_head.weight.shape)})
    mask_adapter(tuned, mask)
    found = adapter_mask(tuned)
    assert found.shapes == adapted_shapes(tuned)
    assert found.card == CARD
    assert all(torch.equal(found.bits[name], mask.bits[name]) for name in found.bits)
    copied = adapter_mask(copy.deepcopy(tuned))
    assert all(torch.equal(copied.bits[name], mask.bits[name]) for name in found.bits)


def test_the_mask_is_packed_moves_with_the_model_and_stays_out_of_the_state(masked):
    layer = masked.base_model.model.model.language_model.layers[0].mlp.up_proj
    (buffer,) = (buffer for name, buffer in layer.named_buffers() if "bits" in name)
    assert buffer.dtype is torch.uint8
    assert buffer.numel() == -(-layer.base_layer.weight.numel() // 8)
    assert not [name for name in masked.state_dict() if "bits" in name]
    masked.bfloat16().to("meta")
    (moved,) = (buffer for name, buffer in layer.named_buffers() if "bits" in name)
    assert (moved.device.type, moved.dtype) == ("meta", torch.uint8)


def test_the_fingerprint_follows_the_mask(model):
    tuned = tuned_model(model)
    found = [model_fingerprint(tuned)]
    for seed in (0, 1):
        mask_adapter(tuned, random_mask(tuned, seed))
        found.append(model_fingerprint(tuned))
    assert len(set(found)) == 3
    mask_adapter(tuned, random_mask(tuned, 0))
    assert model_fingerprint(tuned) == found[1]


# --- what is refused -------------------------------------------------------------------------------------------------


def edited(mask, change):
    tensors = {name: mask.tensor(name) for name in mask.bits}
    change(tensors)
    return mask_of(tensors, mask.card)


def fill(value, part):
    return lambda tensors: [tensor.fill_(value) for name, tensor in tensors.items() if part in name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fill(True, "multi_modal_projector"), r"every weight of the projector part.*linear_1\.weight, .*linear_2\.weight"),
        (fill(False, "language_model"), r"no weight of the language part.*q_proj|no weight of the language part.*down_proj"),
        (lambda tensors: tensors.pop(BELOW), rf"says nothing about {BELOW}"),
        (lambda tensors: tensors.update({BELOW: tensors[BELOW][1:]}), rf"{BELOW} is not in it or of another shape"),
        (lambda tensors: tensors.update({BELOW: tensors[BELOW].T.contiguous()}), rf"{BELOW} is not in it or of another shape"),
        (lambda tensors: tensors.update({"h.0.c.weight": torch.ones(2, 2).bool()}), r"h\.0\.c\.weight is not in it"),
    ],
    ids=["all true", "all false", "uncovered", "shorter", "transposed", "unknown name"],
)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_changes(change, message, model, processor):
    tuned = tuned_model(model)
    before = logits(tuned, processor)
    with pytest.raises(ConfigError, match=message):
        mask_adapter(tuned, edited(random_mask(tuned), change))
    assert adapter_mask(tuned) is None
    assert torch.equal(logits(tuned, processor), before)


def peft_model(model, **settings):
    return get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": r".*language_model.*\.up_proj", **settings}))


def with_two_adapters(model):
    tuned = peft_model(model)
    tuned.add_adapter("second", LoraConfig(r=2, target_modules=r".*language_model.*\.up_proj"))
    return tuned


def merged_in(model):
    tuned = peft_model(model)
    tuned.merge_adapter()
    return tuned


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: peft_model(model, target_modules=r".*embed_tokens"), r"embed_tokens cannot be masked.*Embedding"),
        (lambda model: peft_model(model, target_modules=r".*patch_embedding"), r"patch_embedding cannot be masked.*Conv2d"),
        (lambda model: peft_model(model, target_modules=r".*fc1", lora_bias=True), r"fc1 cannot be masked.*bias"),
        (lambda model: peft_model(model, use_dora=True), r"up_proj cannot be masked.*Dora"),
        (with_two_adapters, r"up_proj cannot be masked.*2 adapters \(default, second\)"),
        (merged_in, r"up_proj cannot be masked.*merged"),
        (lambda model: model, r"the model has none.*mode=lora"),
    ],
    ids=["embedding", "convolution", "bias", "variant", "two", "merged", "none"],
)
def test_an_adapter_that_cannot_be_masked_is_refused(make, message, model):
    tuned = make(model)
    with pytest.raises(ConfigError, match=message):
        mask_adapter(tuned, random_mask(tuned))
    assert adapter_mask(tuned) is None


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(pristine, tmp_path_factory):
    """Folders `base` and `masked`, and the logits of the masked one."""
    root = tmp_path_factory.mktemp("masked")
    base, processor = copy.deepcopy(pristine)
    save(base, processor, root / "base")
    expected = next_adapter(root, "base", "masked", processor)
    return root, expected


def next_adapter(root, below, name, processor, *, seed=0, mask=True):
    """Train an adapter (or pretend to) on a saved model, save it, and return its logits."""
    opened = load(ModelConfig(path=str(root / below)))
    tuned = shaken(apply_tuning(opened.model, LLAVA, LORA, SETTINGS).eval(), seed)
    if mask:
        mask_adapter(tuned, random_mask(tuned, seed))
    save(tuned, processor, root / name, {"role": "unlearned"})
    return logits(tuned, processor)


@pytest.fixture
def folder(saved, tmp_path):
    """A saved masked adapter that the test may damage."""
    return shutil.copytree(saved[0] / "masked", tmp_path / "masked")


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
def test_there_and_back(merge, saved, processor):
    root, expected = saved
    loaded = load(ModelConfig(path=str(root / "masked")), merge=merge)
    found = logits(loaded.model, processor)
    assert torch.equal(found, expected) or merge
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    carried = adapter_mask(loaded.model)
    assert (carried is None) == merge
    assert not loaded.model.training
    if carried:
        assert carried.card == CARD
        assert all(torch.equal(carried.bits[name], bits) for name, bits in random_mask(loaded.model).bits.items())
        assert not [name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("first", [True, False], ids=["on a masked one", "on a plain one"])
@pytest.mark.parametrize("second", [True, False], ids=["masked", "plain"])
def test_an_adapter_on_an_adapter_keeps_both(first, second, saved, tmp_path, processor):
    shutil.copytree(saved[0] / "base", tmp_path / "base")
    next_adapter(tmp_path, "base", "first", processor, seed=1, mask=first)
    expected = next_adapter(tmp_path, "first", "second", processor, seed=2, mask=second)
    for merge in (True, False):
        again = load(ModelConfig(path=str(tmp_path / "second")), merge=merge)
        torch.testing.assert_close(logits(again.model, processor), expected, rtol=0, atol=3e-5)


def test_half_precision_follows_the_rule_of_plain_adapters(saved, processor):
    root, expected = saved
    merged = load(ModelConfig(path=str(root / "masked"), dtype="bfloat16"))
    beside = load(ModelConfig(path=str(root / "masked"), dtype="bfloat16"), merge=False)
    assert {parameter.dtype for parameter in merged.model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(merged.model, processor), expected, rtol=0, atol=2e-5)
    types = {"lora_" in name: parameter.dtype for name, parameter in beside.model.named_parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert adapter_mask(beside.model) is not None
    assert away(logits(beside.model, processor), expected) < 0.05


def test_a_part_tuned_fully_beside_a_masked_adapter_is_saved_too(saved, tmp_path, processor):
    opened = load(ModelConfig(path=str(saved[0] / "base")))
    tune = Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.lora))
    tuned = shaken(apply_tuning(opened.model, LLAVA, tune, SETTINGS).eval())
    mask_adapter(tuned, random_mask(tuned))
    with torch.no_grad():
        tuned.get_parameter(f"base_model.model.{AT_ONCE}").add_(0.1)
    save(tuned, processor, tmp_path / "tuned")
    for merge in (True, False):
        again = load(ModelConfig(path=str(tmp_path / "tuned")), merge=merge)
        torch.testing.assert_close(logits(again.model, processor), logits(tuned, processor), rtol=0, atol=2e-5)


def test_other_loaders_fail_instead_of_leaving_the_mask_out(folder, plain):
    assert {file.name for file in folder.iterdir()} >= {"adapter_config.json", "mask.safetensors"}
    with pytest.raises((OSError, ValueError)):
        PeftModel.from_pretrained(plain, folder)
    with pytest.raises((OSError, ValueError)):
        AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)


def refusal(folder, merge=True):
    with pytest.raises(ConfigError) as caught:
        load(ModelConfig(path=str(folder)), merge=merge)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("merge", [True, False])
def test_without_its_mask_the_adapter_is_refused(merge, folder):
    (folder / "mask.safetensors").unlink()
    message = refusal(folder, merge)
    assert "mask.safetensors is missing" in message
    assert "Copy the whole folder again, or repeat the unlearning" in message


def test_plain_weights_beside_a_mask_are_refused(folder):
    """Someone renamed the file so that other programs find it."""
    (folder / "masked_adapter_model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "stands beside the files of a masked one" in refusal(folder)


def test_a_mask_without_weights_is_refused(folder):
    (folder / "masked_adapter_model.safetensors").unlink()
    assert "masked_adapter_model.safetensors is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["mask.safetensors", "masked_adapter_model.safetensors"])
def test_a_cut_off_file_is_refused(name, folder):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-100])
    assert "Copy the whole folder again" in refusal(folder) or name != "mask.safetensors"


def change_mask(folder, change):
    file = folder / "mask.safetensors"
    save_mask(edited(load_mask(file), change), file)


def test_damaged_bits_are_refused_by_name(folder):
    mask = load_mask(folder / "mask.safetensors")
    broken = SaliencyMask(bits={**mask.bits, BELOW: mask.bits[BELOW][1:]}, shapes=mask.shapes, card=mask.card)
    save_mask(broken, folder / "mask.safetensors")
    assert f"bits of {BELOW} are damaged" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [lambda tensors: tensors.update({BELOW: tensors[BELOW][1:]}), lambda tensors: tensors.pop(BELOW)],
    ids=["shape", "missing"],
)
def test_a_mask_of_another_model_is_refused_by_name(change, folder):
    change_mask(folder, change)
    message = refusal(folder)
    assert BELOW in message
    assert "is not the mask of this adapter. Copy the whole folder again" in message


def test_a_mask_of_the_same_shapes_that_was_not_trained_with_is_refused(folder):
    def flip_one(tensors):
        tensors[BELOW][0, 0] = ~tensors[BELOW][0, 0]

    change_mask(folder, flip_one)
    assert "is not the mask that masked_adapter_model.safetensors was trained with" in refusal(folder)


def edit_weights(folder, edit):
    file = folder / "masked_adapter_model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)


@pytest.mark.parametrize(
    "edit",
    [
        lambda weights: weights.pop(next(iter(weights))),
        lambda weights: weights.update({"base_model.model.h.0.attn.lora_A.weight": weights.pop(next(iter(weights)))}),
        lambda weights: weights.update({"base_model.model.h.0.attn.lora_A.weight": torch.zeros(2, 2)}),
        lambda weights: weights.update({name: w[:2].clone() for name, w in weights.items() if "lora_A" in name}),
    ],
    ids=["missing", "other name", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_are_refused(edit, folder):
    edit_weights(folder, edit)
    assert "adapter" in refusal(folder)


def test_the_model_below_is_found_by_the_settings(folder):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/no/such/model"}))
    with pytest.raises(ConfigError, match="/no/such/model"):
        load(ModelConfig(path=str(folder)))
