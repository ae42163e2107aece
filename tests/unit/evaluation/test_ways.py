"""Which evaluations `both` stands for, and which of them are left out."""

import pytest
from omegaconf import DictConfig, OmegaConf
from small_mllmu import open_small, write_small

from mmunlearn.benchmarks.base import Asking
from mmunlearn.config import Config
from mmunlearn.config_enums import Choice, Protocol, Shots
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.ask import _possible
from mmunlearn.evaluation.opened import Identity
from mmunlearn.evaluation.ways import asking_of, each_way, evaluations_in, open_ways
from mmunlearn.run import Run, write_json, write_text

FOUR = ["fixed-zero_shot", "fixed-few_shot", "official-zero_shot", "official-few_shot"]


def config(**evaluation):
    whole = DictConfig(OmegaConf.to_container(OmegaConf.structured(Config), enum_to_str=True))
    whole.run.dir = "outputs/x"
    whole.evaluation.splits = ["forget"]
    whole.evaluation.update({name: str(value) for name, value in evaluation.items()})
    return whole


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return open_small(write_small(tmp_path_factory.mktemp("small")))


class ZeroShotOnly:
    """MLLMU-Bench as if there were no solved questions for it."""

    name, version = "mllmu", "1"

    def __init__(self, bench):
        self.bench = bench

    def tasks(self, splits, asking):
        if asking.shots is Shots.few_shot:
            raise ConfigError("evaluation.shots=few_shot: there are none.")
        return self.bench.tasks(splits, asking)


def test_one_way_is_the_configuration_itself():
    one = config(protocol="official", shots="few_shot", choice="letter")
    assert each_way(one) == [one]
    assert asking_of(one) == Asking(protocol=Protocol.official, shots=Shots.few_shot)


@pytest.mark.parametrize(
    ("asked", "folders"),
    [
        ({"protocol": "both", "shots": "both"}, FOUR),
        ({"protocol": "both"}, ["fixed-zero_shot", "official-zero_shot"]),
        ({"shots": "both", "protocol": "official"}, ["official-zero_shot", "official-few_shot"]),
    ],
)
def test_both_stands_for_concrete_ways_in_folders_of_their_own(asked, folders):
    whole = config(**asked)
    found = each_way(whole)
    assert [own.run.dir for own in found] == [f"outputs/x/{folder}" for folder in folders]
    assert [f"{own.evaluation.protocol}-{own.evaluation.shots}" for own in found] == folders
    assert (whole.run.dir, whole.evaluation.protocol) == ("outputs/x", asked.get("protocol")), "left as it was"
    assert all(own.data == whole.data and own.model == whole.model for own in found)


def test_the_choice_score_is_for_our_own_rules():
    assert [own.evaluation.choice for own in each_way(config(protocol="both", choice=Choice.text))] == ["text", None]


def test_the_choice_score_of_published_rules_alone_is_still_refused(bench):
    with pytest.raises(ConfigError, match=r"evaluation\.choice: text"):
        open_ways(config(protocol="official", shots="both", choice="text"), bench, lambda line: None)


@pytest.mark.parametrize("asked", [{"protocol": "both"}, {"shots": "both"}])
def test_nothing_is_ever_asked_in_both_ways(asked):
    with pytest.raises(ConfigError, match="`both` is for the verbs evaluate and predict"):
        asking_of(config(**asked))


def test_ways_know_their_questions(bench):
    said = []
    ways = open_ways(config(protocol="both", shots="both"), bench, said.append)
    assert [way.run.root.name for way in ways] == FOUR
    assert said == []
    for way in ways:
        assert way.tasks == bench.tasks(("forget",), way.asking)


def test_a_way_that_the_benchmark_does_not_have_is_left_out_with_one_line(bench):
    said = []
    ways = open_ways(config(protocol="both", shots="both"), ZeroShotOnly(bench), said.append)
    assert [way.run.root.name for way in ways] == ["fixed-zero_shot", "official-zero_shot"]
    assert said == ["Left out: evaluation.shots=few_shot: there are none."] * 2


def test_no_way_left_is_an_error(bench):
    said = []
    with pytest.raises(ConfigError, match="there are none"):
        open_ways(config(protocol="both", shots="few_shot"), ZeroShotOnly(bench), said.append)
    with pytest.raises(ConfigError, match="there are none"):
        open_ways(config(shots="few_shot"), ZeroShotOnly(bench), said.append)
    assert said == []


def test_a_family_without_published_prompts_is_asked_by_our_rules(bench, capsys):
    ways = open_ways(config(protocol="both"), bench, lambda line: None)

    def possible(chosen, model_type):
        return _possible(chosen, Identity(fingerprint="f", model_type=model_type, settings={}))

    assert possible(ways, "llava") == ways
    assert possible(ways, "qwen2_vl") == ways[:1]
    assert "Left out: evaluation.protocol=official" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="published prompts"):
        possible(ways[1:], "qwen2_vl")


def test_evaluations_of_a_folder(tmp_path):
    run = Run(tmp_path)
    assert evaluations_in(run) == []
    for each in (run.under("official", "few_shot"), run.under("fixed", "few_shot")):
        write_json(each.model_card, {})
        write_text(each.config, "")
    write_json(run.under("fixed", "zero_shot").model_card, {})  # begun: not a configuration yet
    assert [each.root.name for each in evaluations_in(run)] == ["fixed-few_shot", "official-few_shot"]
