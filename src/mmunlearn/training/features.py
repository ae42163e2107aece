"""Whether a run encodes each picture once, and the line of the start-up table that says so."""

from collections.abc import Callable

import torch
from torch import nn

from mmunlearn.config import TrainerArgs
from mmunlearn.config_enums import ImageCache
from mmunlearn.data.batch import Batch, Encoder
from mmunlearn.methods.base import Prepared, TrainingData
from mmunlearn.models.families import Family
from mmunlearn.models.image_features import ImageFeatures, why_not, with_pictures

PrepareBatch = Callable[[Batch], Batch]


def as_it_is(batch: Batch) -> Batch:
    """The batch with its pixels."""
    return batch


def features_of(
    model: nn.Module,
    family: Family,
    data: TrainingData,
    encoder: Encoder,
    args: TrainerArgs,
    device: torch.device,
    *,
    sharded: bool,
) -> tuple[PrepareBatch, str]:
    """What gives batches features in place of pixels, and a line about it; as they are where that would not be exact.

    Args:
        model: with its parts frozen, adapted or free.
        family: the model's.
        data: the run's examples.
        encoder: turns them into tensors.
        args: `image_cache` switches it off.
        device: the model's.
        sharded: the ranks share the weights, and so have to go through the vision part together.
    """
    pictures = with_pictures(data.forget, data.retain)
    if not pictures:
        return as_it_is, "pictures: none"
    reason = "trainer.args.image_cache=off" if args.image_cache == ImageCache.off else why_not(model, family)
    if not reason and sharded:
        reason = "the ranks share the weights"
    if reason:
        return as_it_is, f"pictures: encoded in every step ({reason})"
    features = ImageFeatures(model=model, family=family, encoder=encoder, examples=pictures, device=device)
    different = len({tuple(image.key for image in example.images()) for example in pictures.values()})
    most = f"at most {features.most_bytes / 2**30:.1f} GiB are kept in memory"
    return features, f"pictures: {different:,}, each encoded once; {most}"


def for_training(
    prepare_batch: PrepareBatch, line: str, prepared: Prepared, *, other_reference: bool
) -> tuple[PrepareBatch, str]:
    """What the steps may use, once the method has prepared, and the line that says so.

    A reference that is another model sees with its own eyes, so it has to get the pixels of the batches that it is asked about.
    """
    if isinstance(prepare_batch, ImageFeatures) and other_reference and prepared.reference is not None:
        return as_it_is, "pictures: encoded in every step (trainer.reference is another model and sees them too)"
    return prepare_batch, line
