"""The command line: parse, call, print. Each verb's modules are loaded when it is called, so that help is instant."""

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from omegaconf import DictConfig

from mmunlearn.errors import ConfigError, UserError, did_you_mean

HELP = """\
mmunlearn: make vision-language models forget people, and show what they forgot and what they kept.

usage: mmunlearn VERB [key=value ...]     Every setting in configs/ can be overridden; -m sweeps over lists (a=1,2).

  finetune   train a vanilla or gold model         data.split=full | retain | retain_and_text
  unlearn    make a model forget                   trainer=grad_diff | kl_min | npo | mmunlearner | …
  saliency   work out which weights may change     saliency=fisher | official | salun | random | magnitude
  evaluate   predict, then score
  predict    ask a model every question and keep all that it said
  score      turn stored answers into numbers; needs no model
  export     write a model as it is deployed: merged, rounded if wished, with a card     export.precision=int8 | int4
  report     one page about several evaluations    "report.evaluations=[DIR,DIR]"
  sweep      evaluate a sweep's models, choose settings on half of the people    sweep.folder=DIR
  sequence   requests to forget, one after the other      "sequence.requests=[[ID,ID],[ID]]"
  judge      have another model rate free answers  judge.url=… judge.model=… "judge.evaluations=[DIR]"
  probe      what a model knows about people, before any training: data.root=FOLDER data.table=people.csv
  demo       everything, on embedded fictitious people; downloads nothing
  purge      delete what is stored about people    "purge.subjects=[NAME,NAME]"
  inspect    show what training batches supervise
  doctor     what of this machine can be used
  list       models, methods, benchmarks and metrics

examples:
  mmunlearn unlearn trainer=grad_diff model.path=outputs/vanilla/model \\
      data.root=data/MLLMU-Bench data.train_root=data/MLLMMU-Bench
  mmunlearn evaluate model.path=outputs/unlearned/model run.dir=outputs/eval-unlearned
"""


def _train(config: DictConfig) -> None:
    from mmunlearn.training.job import train

    train(config)


def _saliency(config: DictConfig) -> None:
    from mmunlearn.saliency.job import make_mask

    make_mask(config)


def _predict(config: DictConfig) -> None:
    from mmunlearn.evaluation.ask import run_predict

    run_predict(config)


def _score(config: DictConfig) -> None:
    from mmunlearn.evaluation.job import score_again

    score_again(config)


def _evaluate(config: DictConfig) -> None:
    from mmunlearn.evaluation.job import score_run

    _predict(config)
    score_run(config)


def _export(config: DictConfig) -> None:
    from mmunlearn.exporting.job import run_export

    run_export(config)


def _report(config: DictConfig) -> None:
    from mmunlearn.report.job import run_report

    run_report(config)


def _sweep(config: DictConfig) -> None:
    from mmunlearn.sweep.job import sweep_report

    sweep_report(config)


def _sequence(config: DictConfig) -> None:
    from mmunlearn.sequence import run_sequence

    run_sequence(config)


def _judge(config: DictConfig) -> None:
    from mmunlearn.judge.job import run_judge

    run_judge(config)


def _purge(config: DictConfig) -> None:
    from mmunlearn.purge import run_purge

    run_purge(config)


def _probe(config: DictConfig) -> None:
    from mmunlearn.evaluation.probe import run_probe

    run_probe(config)


def _demo(config: DictConfig) -> None:
    from mmunlearn.demo import demo

    demo(config)


def _inspect(config: DictConfig) -> None:
    from mmunlearn.inspect import inspect_batches

    inspect_batches(config)


TRAINING = ("run", "model", "data", "trainer")
EVALUATION = ("run", "model", "data", "evaluation")
VERBS = {
    "finetune": (_train, "finetune", TRAINING),
    "unlearn": (_train, "default", TRAINING),
    "saliency": (_saliency, "saliency", ("run", "model", "data", "saliency")),
    "evaluate": (_evaluate, "evaluate", EVALUATION),
    "predict": (_predict, "evaluate", EVALUATION),
    "score": (_score, "score", ("run", "evaluation")),
    "export": (_export, "export", ("run", "model", "data", "export")),
    "report": (_report, "report", ("run", "report")),
    "sweep": (_sweep, "sweep", ("run", "evaluation", "report", "sweep")),
    "sequence": (_sequence, "sequence", (*TRAINING, "evaluation", "report", "sequence")),
    "probe": (_probe, "probe", (*EVALUATION, "report")),
    "judge": (_judge, "judge", ("judge",)),
    "purge": (_purge, "purge", ("purge",)),
    "demo": (_demo, "demo", ("run", "data", "evaluation", "report", "demo")),
    "inspect": (_inspect, "default", TRAINING),
}
"""Each verb's function, the configuration that it starts from, and the sections that it uses."""
ON_SEVERAL_RANKS = ("finetune", "unlearn")
"""What torchrun and `accelerate launch` may start; everything else would be done once by each rank, in one folder."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one verb. Exit code: 0 well, 2 a mistake that the message explains, 130 stopped by Ctrl-C."""
    sys.exit(guarded(list(sys.argv[1:] if argv is None else argv)))


def train_main() -> NoReturn:
    """What `train.py` runs: `finetune` or `unlearn`, as the configuration's method says."""
    sys.exit(guarded(["unlearn", *sys.argv[1:]]))


def guarded(words: list[str]) -> int:
    """Run a verb and turn errors that a user can mend into one message."""
    # Deprecations inside libraries are nothing that a user can act on.
    warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch)\.")
    try:
        return dispatch(words)
    except UserError as error:
        sys.stderr.write(f"mmunlearn: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nmmunlearn: stopped. What was finished is kept. Evaluations and the demo go on when repeated; a training goes on "
            "from its last checkpoint (trainer.args.save_steps) with the same run.dir and run.resume=true.\n"
        )
        return 130


def dispatch(words: list[str]) -> int:
    """Find the verb and run it; returns the exit code.

    Raises:
        ConfigError: there is no such verb.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"mmunlearn {importlib.metadata.version('mmunlearn')}\n")
        return 0
    verb, *rest = words
    if verb in ("doctor", "list"):
        return _plain(verb)
    if verb.startswith("-"):
        raise ConfigError(f"The verb comes first: mmunlearn unlearn {verb} …")
    if verb not in VERBS:
        raise ConfigError(f"There is no verb {verb!r}. {did_you_mean(verb, [*VERBS, 'doctor', 'list'])}")
    from mmunlearn.launch import launch

    function, config_name, sections = VERBS[verb]
    if {"-h", "--help"} & set(rest):
        sys.stdout.write(
            f"{HELP}\n{verb} starts from configs/{config_name}.yaml and uses the sections {', '.join(sections)}.\n"
        )
        sys.stdout.write(f"What that sets: mmunlearn {verb} --cfg job. Every other setting has a default, see config.py.\n")
        return 0
    if "--cfg" not in rest and "-c" not in rest:
        _check_ranks(verb)
    return launch(verb, function, config_name, sections, rest)


def _check_ranks(verb: str) -> None:
    ranks = os.environ.get("WORLD_SIZE", "1")
    launched = "LOCAL_RANK" in os.environ  # some clusters set WORLD_SIZE in every shell
    if verb in ON_SEVERAL_RANKS or not launched or not ranks.isdecimal() or int(ranks) < 2:
        return
    raise ConfigError(
        f"mmunlearn {verb} is for one process, but a launcher started {ranks} of them (WORLD_SIZE, LOCAL_RANK). Only "
        f"{' and '.join(ON_SEVERAL_RANKS)} run on several; start this one without torchrun. An evaluation shares its questions "
        "between GPUs by evaluation.devices=[0,1]; a sequence can train sharded only request by request, with unlearn."
    )


def _plain(verb: str) -> int:
    """The verbs that take no settings."""
    if verb == "doctor":
        from mmunlearn.doctor import doctor

        return doctor()
    from mmunlearn.catalog import print_catalog

    print_catalog()
    return 0
