import pickle

import pytest
from made_up_study import fabricate_all

from mmunlearn.report import html
from mmunlearn.report.collect import collect


@pytest.fixture(autouse=True, scope="session")
def plots_drawn_once():
    """Most pages show the same plots; `test_report_plots.py` draws its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("loss_curves", "forget_versus_retain"):
            patch.setattr(html, name, kept(getattr(html, name)))
        yield


def kept(draw):
    found = {}

    def drawn(*data, **settings):
        key = pickle.dumps((data, settings))
        if key not in found:
            found[key] = draw(*data, **settings)
        return found[key]

    return drawn


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Evaluations of base, vanilla, two golds and three methods, with two trainings; the numbers are made up."""
    root = tmp_path_factory.mktemp("study")
    return fabricate_all(root, names=("base", "vanilla", "gold", "GradAscent", "GradDiff", "MMUnlearner"))


@pytest.fixture(scope="session")
def collected(folders):
    return collect(*folders)
