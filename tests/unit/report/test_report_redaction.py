"""Names leave a text however they are written there, and what is no name stays as it is."""

import json
import unicodedata
from urllib.parse import quote

import pytest
from omegaconf import OmegaConf

from mmunlearn.report.redaction import redact

NAMES = {"José García": "person 1", "Ann Lee": "person 2", "Jo": "person 3", "12": "person 4", "Renée": "person 5"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jose Garcia lives there", "person 1 lives there"),
        (f"outputs/{quote('José García')}/model", "outputs/person 1/model"),
        ("outputs/forget-JoseGarcia/model josegarcia", "outputs/forget-person 1/model person 1"),
        ("run.dir=outputs/ann%20lee-2 renee", "run.dir=outputs/person 2-2 person 5"),
        (json.dumps({"who": "José García"}), '{"who": "person 1"}'),
        (unicodedata.normalize("NFD", "é: José García, è"), unicodedata.normalize("NFD", "é: person 1, è")),
        ("outputs/ann_lee3 AnnLee3 Ann Lee", "outputs/person 2-3 person 2-3 person 2"),
        ("Jos%E9 Garc%EDa", "person 1"),
        ("annleeward, Joanna, 12 joli, Jose, Garcia", "annleeward, Joanna, 12 joli, Jose, Garcia"),
        ("100% of 3 & 4 \\ %zz &unknown; é", "100% of 3 & 4 \\ %zz &unknown; é"),
        ("", ""),
    ],
)
def test_names_are_replaced_and_nothing_else(text, expected):
    assert redact(text, NAMES) == expected
    assert redact(text, {}) == text
    assert redact(text, {"12": "person 4"}) == text


def test_a_spelling_of_several_people_is_somebody_s():
    """Two who differ in their accents alone are told apart where these are written, and not where they are left out."""
    names = {"José García": "person 1", "Josè García": "person 2"}
    assert redact("José García, JOSÈ_GARCÍA; Jose Garcia", names) == "person 1, person 2; a person"


@pytest.mark.parametrize("spelled", ["Conan O''Brien", "conan_obrien", "conan-o-brien", "ConanOBrien", "Conan%20O%27Brien"])
def test_a_name_with_an_apostrophe_gets_its_label(spelled):
    assert redact(f"of '{spelled}'", {"Conan O'Brien": "person 1", "Łukasz Brien": "person 2"}) == "of 'person 1'"


def test_a_configuration_stays_one(tmp_path):
    """YAML writes long and unusual names in ways of its own."""
    settings = {
        "data": {"forget": ["José García", "x" * 70 + " Ann Lee"], "root": "/data/ann_lee"},
        "run": {"label": "no\nAnn Lee: é"},
    }
    text = redact(OmegaConf.to_yaml(OmegaConf.create(settings)), NAMES)
    assert OmegaConf.to_container(OmegaConf.create(text)) == {
        "data": {"forget": ["person 1", "x" * 70 + " person 2"], "root": "/data/person 2"},
        "run": {"label": "no\nperson 2: é"},
    }
