"""Which examples a run trains on, and whether they can be trained on."""

from collections.abc import Sequence

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.config_enums import Modality, TrainSplit
from mmunlearn.data.batch import IGNORE, Encoder
from mmunlearn.data.example import Example
from mmunlearn.errors import DataError, NoQuestionsError
from mmunlearn.methods.base import Method, Side, TrainingData
from mmunlearn.methods.finetune import FineTune
from mmunlearn.progress import progress


def training_data(benchmark: Benchmark, method: Method, split: TrainSplit, modality: Modality = Modality.both) -> TrainingData:
    """The examples that a method trains on.

    Args:
        benchmark: where they come from.
        method: fine-tuning learns a split, other methods get forget and retain.
        split: whom to learn.
        modality: which of the forget people's questions are to be unlearned.

    Raises:
        DataError: forget and retain share a person, a side that the method needs is empty, or there are no text questions
            for a gold_text model.
    """
    splits = benchmark.splits()
    if not isinstance(method, FineTune):
        return check_data(TrainingData(forget=of_modality(splits.forget, modality), retain=splits.retain), method)
    if split == TrainSplit.retain_and_text:
        texts = of_modality(splits.forget, Modality.text)
        if not texts:
            raise NoQuestionsError(
                "data.split=retain_and_text: the forget people have no training questions without a picture, so this would be "
                "a gold model that calls itself gold_text. The published train splits of MLLMU-Bench have none: use other "
                "data, or hold methods against gold."
            )
        return check_data(TrainingData(retain=(*splits.retain, *texts)), method)
    return check_data(TrainingData(retain=getattr(splits, split)), method)


def of_modality(examples: Sequence[Example], modality: Modality) -> tuple[Example, ...]:
    """The examples with a picture, without one, or all."""
    if modality == Modality.both:
        return tuple(examples)
    return tuple(example for example in examples if (example.image is not None) == (modality == Modality.image))


def check_data(data: TrainingData, method: Method) -> TrainingData:
    """The examples, if a method can be trained on them.

    Raises:
        DataError: forget and retain share a person, or a side that the method needs is empty.
    """
    needs = {term.on for term in method.terms()}
    for side, examples in ((Side.forget, data.forget), (Side.retain, data.retain)):
        if not examples and needs & {side, Side.pair}:
            raise DataError(
                f"{type(method).__name__} needs {side} questions, but there are none. Check data.root, data.train_root, "
                "data.forget_ratio, data.modality and data.forget_modality."
            )
    shared = sorted({e.subject for e in data.forget} & {e.subject for e in data.retain} - {""})
    if shared:
        raise DataError(f"Forget and retain share {len(shared)} people ({', '.join(shared[:5])}). Remove them from one side.")
    return data


def encode_all(encoder: Encoder, examples: Sequence[Example]) -> int:
    """Encode every example once, so that a broken one is found before training; fills the encoder's memory.

    Returns:
        The number of supervised tokens.
    """
    bar = progress(examples, desc="checking examples", unit="example", disable=not examples)
    return sum(int((encoder(example).labels != IGNORE).sum()) for example in bar)
