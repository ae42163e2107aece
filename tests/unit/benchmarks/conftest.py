import pytest

from mmunlearn.benchmarks.people_files import write_people

SMALL = {"num_people": 20, "num_public_figures": 3, "num_holdout": 2, "num_general_faces": 4, "image_size": 32}


@pytest.fixture(scope="session")
def sizes():
    """Arguments of a population that is drawn in a moment."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def people_root(tmp_path_factory):
    """A small population on disk; tests that change files copy it first."""
    root = tmp_path_factory.mktemp("people") / "p"
    write_people(root, seed=0, **SMALL)
    return root
