"""`predict` as a job: open the model and answer the tasks of a configuration."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import ModelConfig, typed
from mmunlearn.data.batch import Encoder
from mmunlearn.evaluation.job import console, model_card, prepare_folder, tasks_of
from mmunlearn.evaluation.predict import Asker, check_family, predict_task
from mmunlearn.models.device import pick_device
from mmunlearn.models.load import load, model_fingerprint, processor_fingerprint, read_card
from mmunlearn.run import Run, write_json


def run_predict(config: DictConfig) -> Run:
    """Answer every question of the chosen tasks; goes on where an earlier call was stopped.

    Args:
        config: complete and checked.
    """
    run = Run(Path(config.run.dir))
    tasks = tasks_of(config, open_benchmark(config.data))
    device = pick_device(config.run.device)
    loaded = load(typed(config.model, ModelConfig), merge=False)
    check_family(tasks, loaded.family)
    fingerprint = model_fingerprint(loaded.model)
    prepare_folder(run, config, fingerprint)
    write_json(run.model_card, model_card(config, read_card(config.model.path), fingerprint))
    asker = Asker(
        model=loaded.model.to(device).eval(),
        encoder=Encoder(loaded.processor, max_length=loaded.max_length, cache_bytes=0),
        batch_size=config.evaluation.batch_size,
        device=device,
    )
    settings = {
        "protocol": config.evaluation.protocol,
        "decoding": "greedy",
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "attention": config.model.attention,
        "processor": processor_fingerprint(loaded.processor),
    }
    done = sum(predict_task(asker, task, run, model=fingerprint, settings=settings) for task in tasks)
    total = sum(len(task.examples) for task in tasks)
    console.print(f"{total:,} questions in {len(tasks)} tasks, {done:,} of them answered before.")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return run
