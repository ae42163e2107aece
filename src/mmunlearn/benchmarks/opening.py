"""From the section `data` of a configuration to an open benchmark."""

from typing import Any

from omegaconf import DictConfig

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.config import DataConfig
from mmunlearn.config_check import build


def open_benchmark(data: DictConfig) -> Benchmark:
    """The benchmark that `data._target_` names, with the fields that belong to it.

    Raises:
        ConfigError: no benchmark is named, or it does not take these values.
    """
    own: dict[str, Any] = {str(key): value for key, value in data.items() if key not in DataConfig.__dataclass_fields__}
    benchmark: Benchmark = build("data", own)
    return benchmark
