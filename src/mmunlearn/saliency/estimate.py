"""From a model and sets of examples to a saliency mask, without files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from mmunlearn.config import SaliencyConfig
from mmunlearn.config_enums import Modules, Per, Reduction, Rule
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example, examples_fingerprint, people_fingerprint
from mmunlearn.errors import ConfigError, DataError, RunError
from mmunlearn.models.families import Family, Part, part_of
from mmunlearn.models.image_features import ImageFeatures, why_not, with_pictures
from mmunlearn.models.load import model_fingerprint
from mmunlearn.models.saliency_mask import SaliencyMask, pack, unpack
from mmunlearn.run import fingerprint
from mmunlearn.saliency import rules
from mmunlearn.saliency.gradients import Estimator, Objective, Source, Sums, num_squares, only_gradients_of

PARTS = {
    Modules.language: (Part.language,),
    Modules.vision: (Part.vision, Part.projector),
    Modules.both: tuple(Part),
}
CONTROLS = (Rule.random, Rule.magnitude)
SHOWN = 3
SMALL_MODEL, SMALL_BATCH = 10**8, 16
"""A model of fewer weights takes so many examples together with per=example, where that changes no result: its time goes
into starting operations, and memory is no concern."""


@dataclass(frozen=True, kw_only=True)
class SaliencyData:
    """The sets of examples. Controls (random, magnitude) need none, forget_gradient needs `forget` alone."""

    forget: Sequence[Example] = ()
    """What is to be forgotten: the forget people's image questions."""
    preserve_language: Sequence[Example] = ()
    """What weights of the language part are to preserve: everybody's text questions and the retain image questions."""
    preserve_vision: Sequence[Example] = ()
    """What weights of vision part and projector are to preserve: the retain image questions."""

    def fingerprint(self) -> str:
        """Identifies ids, questions, answers and pictures of all sets."""
        return fingerprint([examples_fingerprint(own) for own in (self.forget, self.preserve_language, self.preserve_vision)])


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Packed masks by parameter name, and how many weights were 0/0."""

    bits: dict[str, Tensor]
    zero: dict[str, int]


def covered_parameters(model: nn.Module, family: Family, modules: Modules) -> dict[str, nn.Parameter]:
    """Every parameter of the parts that a mask covers, used or not, in the model's order.

    Raises:
        ConfigError: one of them holds whole numbers (a quantised model), which have no gradient.
    """
    found = {name: own for name, own in model.named_parameters() if part_of(name, family) in PARTS[modules]}
    for name, parameter in found.items():
        if not parameter.is_floating_point():
            raise ConfigError(
                f"{name} is quantised ({parameter.dtype}) and has no gradient. Use a model that is not quantised."
            )
    return found


def saliency_mask(
    model: nn.Module,
    family: Family,
    encoder: Encoder,
    data: SaliencyData,
    settings: SaliencyConfig,
    *,
    seed: int = 0,
    like: SaliencyMask | None = None,
    say: Callable[[str], None] = lambda remark: None,
) -> SaliencyMask:
    """Which weights may be changed to forget.

    Legend: F, the mean over examples (over batches, per=batch) of the squared gradient of the loss; f forget, p preserve.

    - fisher_ratio (MMUnlearner, arXiv 2502.11051): F_f > 0 and F_f >= threshold * F_p; with epsilon, see `ratio_mask`.
      Differs from the published script in its defaults: single examples instead of batches, squares in float32 instead of
      the model's dtype, eval mode, the answer alone, no epsilon, and every weight of the part instead of linear layers only.
    - forget_gradient (SalUn, Fan et al., arXiv 2310.12508, eq. 4 and its code): the `density` share of all covered weights
      with the largest |sum of the gradients of the forget loss|.
    - random, magnitude: in each tensor as many weights as `like` selects there.

    Beside the model one float32 buffer for each covered weight is kept, or `settings.max_bytes` of them.

    Args:
        model: on its device; unchanged afterwards.
        family: which weights belong to which part.
        encoder: of the model's processor; decides whether the answer alone is supervised.
        data: the sets.
        settings: the section `saliency`; `like`, `limit` and `compare`, which name or choose data, are not looked at.
        seed: of the rule random.
        like: for random and magnitude.
        say: where remarks go, one line each.

    Returns:
        The mask; its card holds settings, counts by part, and fingerprints of model and data.

    Raises:
        ConfigError: the memory does not even hold one tensor, or `like` does not fit.
        DataError: a set that the rule needs is empty.
        RunError: a gradient is not finite, or all or no weights of a part are selected.
    """
    settings = _typed(settings)
    covered = covered_parameters(model, family, settings.modules)
    if settings.rule in CONTROLS:
        found = _control(covered, settings, like, seed)
    else:
        _check_data(data, settings)
        found = _estimated(model, family, encoder, data, settings, covered, say)
    shapes = {name: tuple(parameter.shape) for name, parameter in covered.items()}
    mask = SaliencyMask(bits={name: found.bits[name] for name in covered}, shapes=shapes, card={})
    counts = mask.counts(family)
    _check_uniform(counts, settings)
    zero: dict[Part, int] = {}
    for name, number in found.zero.items():
        part = part_of(name, family)
        zero[part] = zero.get(part, 0) + number
    card = _card(settings, data, encoder, seed, counts, zero) | {"model": {"fingerprint": model_fingerprint(model)}}
    return SaliencyMask(bits=mask.bits, shapes=shapes, card=card)


def _typed(settings: SaliencyConfig) -> SaliencyConfig:
    """Plain strings, as a configuration delivers them, become enums."""
    values = {**vars(settings), "rule": Rule(settings.rule), "modules": Modules(settings.modules)}
    return SaliencyConfig(**{**values, "per": Per(settings.per), "loss": Reduction(settings.loss)})


def _estimated(
    model: nn.Module,
    family: Family,
    encoder: Encoder,
    data: SaliencyData,
    settings: SaliencyConfig,
    covered: Mapping[str, nn.Parameter],
    say: Callable[[str], None],
) -> _Found:
    """A mask by a rule that needs gradients."""
    size = settings.batch_size
    if settings.per is Per.example and sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL:
        size = max(size, SMALL_BATCH)
    objective = Objective(per=settings.per, reduction=settings.loss)
    pictures = _pictures_once(model, family, encoder, data, settings)
    estimator = Estimator(model, encoder, objective, size, say, *pictures)
    groups = _groups(covered, settings.max_bytes)
    if len(groups) > 1:
        say(f"saliency.max_bytes={settings.max_bytes:,}: the tensors are done in {len(groups)} groups, one after the other.")
    rule = _fisher_ratio if settings.rule is Rule.fisher_ratio else _forget_gradient
    return rule(estimator, family, groups, data, settings)


def _pictures_once(
    model: nn.Module, family: Family, encoder: Encoder, data: SaliencyData, settings: SaliencyConfig
) -> list[ImageFeatures]:
    """What encodes each picture once, where neither vision part nor projector is covered; else nothing."""
    examples = with_pictures(data.forget, data.preserve_language)
    device = next(model.parameters()).device
    with only_gradients_of(model, []):  # no weight changes here, whatever is to be tuned later
        if not examples or settings.modules is not Modules.language or why_not(model, family):
            return []
        return [ImageFeatures(model=model, family=family, encoder=encoder, examples=examples, device=device)]


def _check_data(data: SaliencyData, settings: SaliencyConfig) -> None:
    needed = {"forget": "image questions about the people to be forgotten"}
    if settings.rule is Rule.fisher_ratio and settings.modules is not Modules.vision:
        needed["preserve_language"] = "text questions and image questions about people to be retained"
    if settings.rule is Rule.fisher_ratio and settings.modules is not Modules.language:
        needed["preserve_vision"] = "image questions about people to be retained"
    for name, what in needed.items():
        if not getattr(data, name):
            raise DataError(f"The mask needs {what}, but there are none. Check data.root, data.train_root, data.forget_ratio.")


def _groups(covered: Mapping[str, nn.Parameter], max_bytes: int) -> list[list[str]]:
    """Neighbouring tensors whose float32 sums and bits fit into the memory allowed (0: all in one)."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, parameter in covered.items():
        needed = 4 * parameter.numel() + -(-parameter.numel() // 8)
        if 0 < max_bytes < needed:
            raise ConfigError(f"saliency.max_bytes={max_bytes}: {name} alone needs {needed} bytes. Allow at least as many.")
        if groups[-1] and max_bytes and used + needed > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += needed
    return groups


# --- the rules --------------------------------------------------------------------------------------------------------


def _fisher_ratio(
    estimator: Estimator, family: Family, groups: list[list[str]], data: SaliencyData, settings: SaliencyConfig
) -> _Found:
    parameters = dict(estimator.model.named_parameters())
    bits: dict[str, Tensor] = {}
    zero: dict[str, int] = {}
    for group in groups:
        sums = Sums({name: parameters[name] for name in group})
        used: dict[str, Tensor] = {}

        def remember(number: int, sums: Sums = sums, used: dict[str, Tensor] = used) -> None:
            if number == 0:
                used.update({name: pack(total > 0) for name, total in sums.totals.items()})

        estimator.run(sums, _sources(group, family, data, settings), remember)
        for name in group:
            total = sums.totals.pop(name)
            own = unpack(used.pop(name), tuple(total.shape))
            zero[name] = rules.zero_over_zero(total, own)
            bits[name] = pack(rules.ratio_mask(total, own, threshold=settings.threshold, epsilon=settings.epsilon)).cpu()
    return _Found(bits=bits, zero=zero)


def _sources(group: list[str], family: Family, data: SaliencyData, settings: SaliencyConfig) -> list[Source]:
    """Forget, then what each part preserves, with minus the threshold; a set that both parts preserve is passed once."""
    language = [name for name in group if part_of(name, family) is Part.language]
    vision = [name for name in group if part_of(name, family) is not Part.language]

    def number(examples: Sequence[Example]) -> int:
        return num_squares(examples, settings.per, settings.batch_size)

    found = [Source(name="forget", examples=data.forget, factors=dict.fromkeys(group, 1 / number(data.forget)))]
    for_language = dict.fromkeys(language, -settings.threshold / max(1, number(data.preserve_language)))
    for_vision = dict.fromkeys(vision, -settings.threshold / max(1, number(data.preserve_vision)))
    pictures = [example for example in data.preserve_language if example.image is not None]
    if language and vision and pictures == list(data.preserve_vision):
        text = [example for example in data.preserve_language if example.image is None]
        found.append(Source(name="preserve, image", examples=pictures, factors=for_language | for_vision))
        found.append(Source(name="preserve, text", examples=text, factors=for_language))
    else:
        found.append(Source(name="preserve", examples=data.preserve_language, factors=for_language))
        found.append(Source(name="preserve", examples=data.preserve_vision, factors=for_vision))
    return [source for source in found if source.factors and source.examples]


def _forget_gradient(
    estimator: Estimator, family: Family, groups: list[list[str]], data: SaliencyData, settings: SaliencyConfig
) -> _Found:
    parameters = dict(estimator.model.named_parameters())

    def work_out(group: list[str]) -> dict[str, Tensor]:
        sums = Sums({name: parameters[name] for name in group}, signed=True)
        estimator.run(sums, [Source(name="forget", examples=data.forget, factors=dict.fromkeys(group, 1.0))])
        return {name: total.abs_() for name, total in sums.totals.items()}

    kept = work_out(groups[0]) if len(groups) == 1 else None

    def read() -> Iterator[tuple[str, Tensor]]:
        """Absolute sums of gradients; several groups are worked out anew each time, since they do not fit beside each other."""
        for group in groups:
            yield from (work_out(group) if kept is None else kept).items()

    size = sum(parameters[name].numel() for group in groups for name in group)
    count = max(1, round(settings.density * size))
    cut = rules.cutoff(lambda: (values for _, values in read()), count)
    if cut.value == 0:
        raise RunError(
            f"saliency.density={settings.density}: the forget loss has a gradient for fewer of the {size:,} covered weights. "
            "Lower it, so that no weight without a gradient is selected."
        )
    bits = {}
    for name, values in read():
        chosen, cut = rules.top_mask(values, cut)
        bits[name] = pack(chosen).cpu()
    return _Found(bits=bits, zero={})


def _control(covered: Mapping[str, nn.Parameter], settings: SaliencyConfig, like: SaliencyMask | None, seed: int) -> _Found:
    if like is None:
        raise ConfigError(f"saliency.rule={settings.rule} copies the density of another mask. Name it with saliency.like.")
    shapes = {name: tuple(parameter.shape) for name, parameter in covered.items()}
    if like.bits.keys() != shapes.keys():
        raise ConfigError(
            f"saliency.modules={settings.modules}, but saliency.like covers other tensors "
            f"({', '.join(sorted(like.bits.keys() ^ shapes.keys())[:SHOWN])}, …). Set saliency.modules to what that mask was "
            "made with, and model.path to its model."
        )
    other = [name for name, shape in shapes.items() if like.shapes[name] != shape]
    if other:
        raise ConfigError(f"saliency.like was made for another model: {', '.join(other[:SHOWN])} has another shape.")
    bits = {}
    for name, parameter in covered.items():
        if settings.rule is Rule.random:
            own_seed = int(fingerprint([seed, name])[:15], 16)
            bits[name] = pack(rules.drawn(shapes[name], like.selected(name), own_seed))
        else:
            bits[name] = pack(rules.largest(parameter.detach().abs().float(), like.selected(name))).cpu()
    return _Found(bits=bits, zero={})


def _check_uniform(counts: Mapping[Part, tuple[int, int]], settings: SaliencyConfig) -> None:
    for part, (selected, covered) in counts.items():
        if selected in (0, covered):
            what = "none" if selected == 0 else "all"
            setting = "density" if settings.rule is Rule.forget_gradient else "threshold"
            raise RunError(
                f"The mask selects {what} of the {covered:,} weights of the {part} part, so it would "
                f"{'change nothing there' if selected == 0 else 'hold nothing back there'}. Change saliency.{setting}, or "
                "check that the examples use this part."
            )


def _card(
    settings: SaliencyConfig,
    data: SaliencyData,
    encoder: Encoder,
    seed: int,
    counts: Mapping[Part, tuple[int, int]],
    zero: Mapping[Part, int],
) -> dict[str, Any]:
    """What the mask says about itself; settings that the rule does not look at are left out."""
    control = settings.rule in CONTROLS
    used = ["rule", "modules"]
    used += ["like"] if control else ["loss", "per", *(["batch_size"] if settings.per is Per.batch else [])]
    used += {Rule.fisher_ratio: ["threshold", "epsilon"], Rule.forget_gradient: ["density"]}.get(settings.rule, [])
    values = {name: getattr(settings, name) for name in used}
    card: dict[str, Any] = {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}
    card |= {"seed": seed} if settings.rule is Rule.random else {}
    if not control:
        examples = {name: len(own) for name, own in vars(data).items()}
        card |= {"answer_only": encoder.answer_only, "examples": examples, "data": {"fingerprint": data.fingerprint()}}
        card["data"]["forget_people"] = people_fingerprint(data.forget)
    card["parts"] = {
        str(part): {"selected": selected, "covered": covered, "zero_over_zero": zero.get(part)}
        for part, (selected, covered) in counts.items()
    }
    return card
