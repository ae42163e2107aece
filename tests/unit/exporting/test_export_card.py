"""The card of an exported model: whom it counts as unlearned, request after request."""

import json
from pathlib import Path

import pytest
import yaml

from mmunlearn.exporting.card import Facts, model_card
from mmunlearn.exporting.observe import Difference
from mmunlearn.run import Run, environment

NAMES = ["Ada Example", "Bo Sample", "Cy Instance", "Di Specimen", "Ed Case"]


def card(root, *, config=None, forgot=None, evaluations=()):
    """The card of a model beside whose folder a training run wrote down these things."""
    if config is not None:
        (root / "config.yaml").write_text(yaml.safe_dump(config) if isinstance(config, dict) else config)
    if forgot is not None:
        (root / "subjects.json").write_text(json.dumps({"forgot": [f"{n:032x}" for n in range(forgot)], "learned": ["f" * 32]}))
    facts = Facts(
        card={"role": "unlearned", "method": "NPO", "seed": 0},
        base=str(root),
        training=Run(Path(root)),
        precision="float32",
        source_fingerprints=("a" * 16, "c" * 16),
        fingerprint="b" * 16,
        merging=None,
        storing=Difference(largest=0.0, relative=0.0, same_replies=1.0, examples=4),
        environment=environment(),
        evaluations=evaluations,
    )
    return model_card(facts)


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        (NAMES[:2], "- People unlearned: 5 (3 in this request, 2 in earlier ones)\n"),
        (NAMES[:1], "- People unlearned: 4 (3 in this request, 1 in earlier ones)\n"),
        ([], "- People unlearned: 3\n"),
        (None, "- People unlearned: 3\n"),
    ],
)
def test_people_of_earlier_requests_count(tmp_path, earlier, said):
    text = card(tmp_path, config={"data": {"forget": NAMES[2:], "earlier": earlier}}, forgot=3)
    assert said in text
    assert not [name for name in NAMES if name in text]


@pytest.mark.parametrize("config", [{"data": {"forget_ratio": "5"}}, {"data": None}, {"model": {}}, ""])
def test_a_run_of_one_request_counts_its_own(tmp_path, config):
    text = card(tmp_path, config=config, forgot=3)
    assert "- People unlearned: 3\n" in text
    assert ("- Forget ratio: 5 %\n" in text) == ("forget_ratio" in str(config))


def test_who_is_not_on_record_is_not_counted(tmp_path):
    assert "People unlearned" not in card(tmp_path, config={"data": {"earlier": NAMES}})
    assert "People unlearned" not in card(tmp_path, forgot=0)


def test_each_evaluation_says_on_which_weights_it_was_measured(tmp_path):
    """What it was made from has a fingerprint in each precision; the weights in the folder are nobody else's."""
    for letter in "abcd":
        (tmp_path / letter).mkdir()
        model = {"fingerprint": letter * 16, "role": "unlearned", "method": "NPO"}
        results = {"model": model, "tasks": {"forget_image_choice": {"accuracy": {"value": 0.25, "count": 8}}}}
        (tmp_path / letter / "results.json").write_text(json.dumps(results))
    text = card(tmp_path, evaluations=[str(tmp_path / letter) for letter in "abcd"])
    rows = [line for line in text.splitlines() if line.startswith("| NPO |")]
    whose = ["what this file was made from", "this file", "what this file was made from", "another model"]
    assert rows == [
        f"| NPO | `{letter * 8}` ({who}) | forget_image_choice | accuracy | 0.250 | 8 |"
        for letter, who in zip("abcd", whose, strict=True)
    ]
