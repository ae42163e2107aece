"""Which questions a mask is made from."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from tiny_cases import make_examples

from mmunlearn.benchmarks.base import Modality, Splits
from mmunlearn.config import SaliencyConfig
from mmunlearn.config_enums import Modules, Rule
from mmunlearn.errors import DataError, NoQuestionsError
from mmunlearn.saliency.job import mask_data

FORGET, RETAIN = make_examples("forget", 6), make_examples("retain", 10)


@dataclass(frozen=True)
class Made:
    """A benchmark like the published files: text questions only where they are asked for."""

    modality: Modality = Modality.image
    text: bool = True
    pictures: bool = True
    name: str = "made"

    def splits(self):
        def read(split):
            everything = {"forget": FORGET, "retain": RETAIN, "full": (*FORGET, *RETAIN)}[split]
            wanted = self.modality is Modality.image
            found = tuple(e for e in everything if (e.image is not None) == wanted)
            if not (self.pictures if wanted else self.text):
                raise NoQuestionsError(f"{split}: has no {self.modality.value} questions to train on.")
            return found

        return Splits(read)

    def problems(self) -> Mapping[str, int]:
        return {f"flaw of {self.modality}": 1}


def with_picture(examples):
    return tuple(example for example in examples if example.image is not None)


@pytest.mark.parametrize("modality", list(Modality))
def test_sets_of_both_parts_whatever_the_modality(modality):
    data, problems = mask_data(Made(modality), SaliencyConfig(modules=Modules.both))
    text = tuple(example for example in (*FORGET, *RETAIN) if example.image is None)
    assert data.forget == with_picture(FORGET)
    assert data.preserve_language == (*text, *with_picture(RETAIN))
    assert data.preserve_vision == with_picture(RETAIN)
    assert set(problems) == {"flaw of image", "flaw of text"}


def test_sets_that_are_not_needed_are_not_read():
    data, _ = mask_data(Made(text=False), SaliencyConfig(modules=Modules.vision))
    assert (data.preserve_language, data.preserve_vision) == ((), with_picture(RETAIN))
    data, _ = mask_data(Made(text=False), SaliencyConfig(rule=Rule.forget_gradient))
    assert (data.forget, data.preserve_language, data.preserve_vision) == (with_picture(FORGET), (), ())
    data, _ = mask_data(Made(), SaliencyConfig(modules=Modules.language))
    assert data.preserve_vision == ()


def test_missing_questions_are_named():
    with pytest.raises(DataError, match=r"full split has no text questions.*saliency\.modules=vision"):
        mask_data(Made(text=False), SaliencyConfig())
    with pytest.raises(DataError, match=r"forget split has no image questions.*data\.forget_ratio"):
        mask_data(Made(pictures=False), SaliencyConfig())


def test_a_limit_holds_for_each_set_and_keeps_the_order():
    data, _ = mask_data(Made(), SaliencyConfig(modules=Modules.both, limit=2))
    assert [len(own) for own in (data.forget, data.preserve_language, data.preserve_vision)] == [2, 4, 2]
    positions = [with_picture(RETAIN).index(example) for example in data.preserve_vision]
    assert positions == sorted(positions)
    assert data.preserve_language[2:] == data.preserve_vision
