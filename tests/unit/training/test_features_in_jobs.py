"""That a job encodes pictures once where it may, says so, and asks another reference with its own eyes."""

import pytest
from accelerate import Accelerator
from tiny_cases import encoder_for, make_examples, tiny_model

from mmunlearn.config import PartTuning, TrainerArgs, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.kl_min import KLMin
from mmunlearn.methods.npo import NPO
from mmunlearn.models.families import LLAVA
from mmunlearn.models.image_features import ImageFeatures
from mmunlearn.models.load import Loaded
from mmunlearn.models.reference import Reference
from mmunlearn.run import Run
from mmunlearn.training.features import as_it_is
from mmunlearn.training.identity import OtherReference
from mmunlearn.training.job import Settings, _assemble

DATA = TrainingData(forget=make_examples("forget", 4), retain=make_examples("retain", 4))


def loaded(seed):
    model, processor = tiny_model(seed)
    return Loaded(model=model, processor=processor, family=LLAVA)


def assembled(folder, method, *, other=None, language=Mode.full, **args):
    part = {name: PartTuning(mode=Mode.freeze) for name in ("vision", "projector")}
    settings = Settings(args=TrainerArgs(**args), tune=Tune(language=PartTuning(mode=language), **part))
    reference = None if other is None else OtherReference(loaded=other, role=None)
    return _assemble(Run(folder), "key", loaded(0), method, DATA, settings, Accelerator(cpu=True), reference)


@pytest.mark.parametrize("language", [Mode.full, Mode.lora])
def test_a_job_with_frozen_eyes_encodes_once_and_says_so(language, tmp_path, capsys):
    made = assembled(tmp_path, KLMin(), language=language)
    assert isinstance(made.prepare_batch, ImageFeatures)
    assert "pictures: 4, each encoded once" in capsys.readouterr().err


def test_it_can_be_switched_off(tmp_path, capsys):
    assert assembled(tmp_path, KLMin(), image_cache="off").prepare_batch is as_it_is
    assert "image_cache=off" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "cached"), [(NPO(), True), (KLMin(), False)])
def test_another_reference_sees_with_its_own_eyes(method, cached, tmp_path, capsys):
    other = loaded(7)
    other.model.requires_grad_(False)
    made = assembled(tmp_path, method, other=other)
    assert isinstance(made.prepare_batch, ImageFeatures) == cached
    assert ("another model" in capsys.readouterr().err) != cached
    if cached:
        alone = Reference(model=other.model, encoder=encoder_for(other.processor)).log_likelihoods(DATA.forget)
        assert made.prepared.log_likelihoods == pytest.approx(alone, rel=1e-6)


def test_the_likelihoods_before_training_are_those_of_the_pixels(tmp_path):
    own = loaded(0)
    made = assembled(tmp_path, NPO())
    alone = Reference(model=own.model, encoder=encoder_for(own.processor)).log_likelihoods(DATA.forget)
    assert made.prepared.log_likelihoods == pytest.approx(alone, rel=1e-5)
    assert isinstance(made.prepare_batch, ImageFeatures)
    assert made.prepare_batch.encoded == sum(example.image is not None for example in DATA.forget)
