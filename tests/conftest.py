"""Fixtures that several folders of tests share; the functions behind them are in `tiny_cases.py`."""

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other: threads of one test would wait for those of others

import pytest

# What loads torch is imported in the fixtures: the process that only hands tests out to others needs none of it.


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tests run beside each other on few cores, and a fixed number of threads makes sums repeatable."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_more_threads():
    """A test that left two threads behind made all that came after it in its process several times slower."""
    import torch

    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session")
def pristine():
    """The tiny model and its processor, built once; tests take copies."""
    from tiny_cases import tiny_model

    return tiny_model()


@pytest.fixture
def model(pristine):
    """An untrained LLaVA of 100,000 weights, the test's own."""
    return copy.deepcopy(pristine[0])


@pytest.fixture
def processor(pristine):
    """Its processor, the test's own."""
    return copy.deepcopy(pristine[1])


@pytest.fixture(scope="session")
def examples():
    """Eight examples, every second one with a picture, with answers of unequal length."""
    from tiny_cases import make_examples

    return make_examples("case", 8)


@pytest.fixture(scope="session")
def data():
    """Eight forget and eight retain examples, pictures and text mixed."""
    from tiny_cases import make_examples

    from mmunlearn.methods.base import TrainingData

    return TrainingData(forget=make_examples("forget", 8), retain=make_examples("retain", 8, first=1))


@pytest.fixture
def make_training(model, processor, data, tmp_path):
    """Puts a run of the loop together: `make_training(method, **settings of Setup)`."""
    from tiny_cases import Setup, training_of

    def make(method, **settings):
        return training_of(
            Setup(method, **{"data": data, "model": model, "processor": processor, "folder": tmp_path, **settings})
        )

    return make
