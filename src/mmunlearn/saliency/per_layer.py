"""Squared gradients of single examples from one backward pass over a batch of them.

If the loss is a sum over examples, the output gradient of a layer falls apart into the examples' own, so the weight gradient
of example b of a linear layer is G_b^T A_b, with A its input and G its output gradient. Only activations are differentiated;
no weight gradient of a batch is ever formed. Since squares are summed over examples, it does not matter which example a row
belongs to, only that each row belongs to one.

Legend: B examples, T rows of one example (tokens, image patches), N supervised tokens of the batch, U units of a layer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils.hooks import RemovableHandle

CHUNK_BYTES = 1 << 18
"""Rows of a product are worked on in blocks of this size, so that a block stays in the processor's cache."""
GPU_CHUNK_BYTES = 1 << 28


class UnsupportedLayerError(Exception):
    """A covered weight whose gradients cannot be told apart by example; the caller takes one example at a time."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the squared gradients of one parameter go."""

    total: Tensor
    """float32, of the parameter's shape."""
    factor: float
    """What each square is multiplied by."""

    def add(self, gradients: Tensor) -> None:
        """Add the squares of [B, *shape], one gradient an example."""
        self.total.add_(gradients.square().sum(dim=0), alpha=self.factor)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one layer saw in one pass, as far as its weights are concerned."""

    module: nn.Module
    inputs: Tensor
    keywords: Mapping[str, Any]
    gradient: Tensor
    """Of the summed loss with respect to the layer's output."""
    counts: tuple[int, ...]
    """B numbers of supervised tokens."""
    targets: Mapping[str, Target]
    """By the parameter's name in the layer; those that are not covered are absent."""


Rule = Callable[[Call], None]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module with covered parameters, and how their gradients are worked out."""

    path: str
    module: nn.Module
    names: Mapping[str, str]
    """From the parameter's name in the module to its name in the model."""
    add: Rule


def plan_layers(model: nn.Module, covered: Collection[str]) -> list[Layer]:
    """Which modules have to be watched to get the gradients of some parameters.

    Args:
        model: the model.
        covered: names of parameters.

    Raises:
        UnsupportedLayerError: two layers share a covered parameter: their gradients add up before they are squared.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    shared = [names for names in owners.values() if len(names) > 1 and set(names) & set(covered)]
    if shared:
        raise UnsupportedLayerError(f"{' and '.join(shared[0])} are the same weights")
    layers: list[Layer] = []
    claimed: set[str] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        add, local = _rule_of(module)
        names = {name: prefix + name for name in local if prefix + name not in claimed}
        claimed.update(names.values())
        wanted = {name: full for name, full in names.items() if full in covered}
        if wanted:
            layers.append(Layer(path=path, module=module, names=wanted, add=add))
    return layers


def _rule_of(module: nn.Module) -> tuple[Rule, list[str]]:
    """How a module's weights are differentiated, and which they are; exact types, since a subclass may compute otherwise."""
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if type(module) in _RULES:
        return _RULES[type(module)], own
    if own:  # embeddings inside are looked up once for all examples and then added to each: only here are they told apart
        for path, child in module.named_modules():
            own += [f"{path}.weight"] if type(child) is nn.Embedding else []
    return _add_any, own


class Watch:
    """Hooks that add the squared gradients of each example while the backward pass of a batch goes on."""

    def __init__(self, layers: Sequence[Layer], targets: Mapping[str, Target]) -> None:
        """Watch some layers until `remove` is called.

        Args:
            layers: from `plan_layers`.
            targets: where the squares go, by parameter name; parameters without one are left out.
        """
        self._targets = targets
        self._counts: tuple[int, ...] = ()
        self._called: set[str] = set()
        self._busy = False
        watched = [layer for layer in layers if targets.keys() & layer.names.values()]
        self._handles: list[RemovableHandle] = [
            layer.module.register_forward_hook(partial(self._after_forward, layer), with_kwargs=True) for layer in watched
        ]

    def begin(self, counts: Sequence[int]) -> None:
        """Say how many supervised tokens each of the B examples of the next batch has."""
        self._counts = tuple(counts)
        self._called.clear()

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _after_forward(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        if self._busy:  # a layer that is worked out by running it once more
            return
        if layer.path in self._called:
            raise UnsupportedLayerError(f"{layer.path} is used twice")
        self._called.add(layer.path)
        if not isinstance(output, Tensor) or len(args) != 1 or any(isinstance(value, Tensor) for value in keywords.values()):
            raise UnsupportedLayerError(f"{layer.path} has other inputs or outputs than one tensor")
        inputs = args[0].detach()
        if not output.requires_grad:  # the first covered layer on the way: the graph begins here, no weight is in it
            output.requires_grad_(True)
        output.register_hook(partial(self._after_backward, layer, inputs, keywords))  # type: ignore[no-untyped-call]

    def _after_backward(self, layer: Layer, inputs: Tensor, keywords: dict[str, Any], gradient: Tensor) -> None:
        targets = {name: self._targets[full] for name, full in layer.names.items() if full in self._targets}
        self._busy = True
        try:
            call = Call(
                module=layer.module,
                inputs=inputs.float() if inputs.is_floating_point() else inputs,
                keywords=keywords,
                gradient=gradient.detach().float(),
                counts=self._counts,
                targets=targets,
            )
            layer.add(call)
        finally:
            self._busy = False


# --- the rules, one a kind of layer -----------------------------------------------------------------------------------


def rows_of_examples(values: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Cut what a layer saw or gave into the examples' own rows.

    Args:
        values: [B, …, U], or [N, U] or [1, N, U] where the layer ran on the supervised positions alone.
        counts: B numbers of supervised tokens.

    Returns:
        B tensors [T, U].

    Raises:
        UnsupportedLayerError: any other arrangement.
    """
    units = values.shape[-1]
    if values.dim() >= 2 and len(values) == len(counts):
        return [row.reshape(-1, units) for row in values.unbind(0)]
    flat = values[0] if values.dim() == 3 and len(values) == 1 else values
    if flat.dim() == 2 and len(flat) == sum(counts):
        return list(torch.split(flat, list(counts)))
    raise UnsupportedLayerError(
        f"a layer works on {tuple(values.shape)}, which does not fall apart into {len(counts)} examples"
    )


def _sums_of_examples(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Add up the rows of each example: from [B, …, U] or [N, U] to [B, U]."""
    if values.dim() >= 3 and len(values) == len(counts):
        return values.flatten(1, -2).sum(dim=1)
    return torch.stack([rows.sum(dim=0) for rows in rows_of_examples(values, counts)])


def _add_linear(call: Call) -> None:
    """weight: G_b^T A_b; bias: the sum of the rows of G_b."""
    if "weight" in call.targets:
        gradients = rows_of_examples(call.gradient, call.counts)
        inputs = rows_of_examples(call.inputs, call.counts)
        _add_products(call.targets["weight"], gradients, inputs)
    if "bias" in call.targets:
        call.targets["bias"].add(_sums_of_examples(call.gradient, call.counts))


def _add_products(target: Target, gradients: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Square G_b^T A_b for every example b, in blocks of rows.

    Args:
        target: of [U, V], or of a shape that flattens to it.
        gradients: B tensors [T, U].
        inputs: B tensors [T, V].
    """
    pairs = [_without_zero_rows(*pair) for pair in zip(gradients, inputs, strict=True)]
    total = target.total.view(len(target.total), -1)
    units, width = total.shape
    limit = GPU_CHUNK_BYTES if total.is_cuda else CHUNK_BYTES
    step = min(units, max(1, limit // (4 * width)))
    room = torch.empty(step, width, device=total.device)
    for start in range(0, units, step):
        block = total[start : start + step]
        product = room[: len(block)]
        for gradient, rows in pairs:
            torch.mm(gradient[:, start : start + step].T, rows, out=product)
            block.addcmul_(product, product, value=target.factor)


def _without_zero_rows(gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out rows that contribute nothing: padding, and in the last block all positions without a supervised token."""
    if gradient.is_cuda:  # counting them would wait for the device
        return gradient, inputs
    used = (gradient != 0).any(dim=1).nonzero()[:, 0]
    return (gradient, inputs) if 4 * len(used) > 3 * len(gradient) else (gradient[used], inputs[used])


def _add_embedding(call: Call) -> None:
    """The rows of G_b that belong to the same entry are added, then squared."""
    module = call.module
    assert isinstance(module, nn.Embedding)
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise UnsupportedLayerError("an embedding scales its gradients")
    if len(call.inputs) != len(call.counts) or call.inputs.dim() != 2:
        raise UnsupportedLayerError(f"an embedding is looked up for {tuple(call.inputs.shape)}, not by example")
    size = module.num_embeddings
    owner = torch.arange(len(call.inputs), device=call.inputs.device)[:, None]
    keys, place = torch.unique(call.inputs + owner * size, return_inverse=True)
    gradients = torch.zeros(len(keys), module.embedding_dim, device=call.gradient.device)
    gradients.index_add_(0, place.flatten(), call.gradient.flatten(0, 1))
    entries = keys % size
    if module.padding_idx is not None:  # autograd gives this entry no gradient
        gradients[entries == module.padding_idx] = 0
    target = call.targets["weight"]
    target.total.index_add_(0, entries, gradients.square_(), alpha=target.factor)


def _add_convolution(call: Call) -> None:
    """A linear layer on unfolded patches."""
    module = call.module
    assert isinstance(module, nn.Conv2d)
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise UnsupportedLayerError("a convolution has groups or a padding other than zeros")
    if len(call.inputs) != len(call.counts):
        raise UnsupportedLayerError(f"a convolution sees {len(call.inputs)} images for {len(call.counts)} examples")
    gradients = call.gradient.flatten(2).transpose(1, 2)
    if "weight" in call.targets:
        shape = {"dilation": module.dilation, "padding": module.padding, "stride": module.stride}
        patches = nn.functional.unfold(call.inputs, module.kernel_size, **shape).transpose(1, 2)
        _add_products(call.targets["weight"], gradients.unbind(0), patches.unbind(0))
    if "bias" in call.targets:
        call.targets["bias"].add(gradients.sum(dim=1))


def _add_layer_norm(call: Call) -> None:
    """weight: the sum over rows of G times the normalised input; bias: the sum of G."""
    module = call.module
    assert isinstance(module, nn.LayerNorm)
    if len(module.normalized_shape) != 1:
        raise UnsupportedLayerError("a layer norm spans several dimensions")
    if "weight" in call.targets:
        normal = nn.functional.layer_norm(call.inputs, module.normalized_shape, eps=module.eps)
        call.targets["weight"].add(_sums_of_examples(call.gradient * normal, call.counts))
    if "bias" in call.targets:
        call.targets["bias"].add(_sums_of_examples(call.gradient, call.counts))


def _add_any(call: Call) -> None:
    """Any other layer: it is run once more for each example on its own and differentiated with respect to its weights."""
    if len(call.inputs) != len(call.counts) or len(call.gradient) != len(call.counts):
        raise UnsupportedLayerError(f"a layer works on {tuple(call.inputs.shape)}, not by example")
    state = {**dict(call.module.named_parameters()), **dict(call.module.named_buffers())}
    fixed = {name: value.detach().float() if value.is_floating_point() else value for name, value in state.items()}
    wanted = {name: fixed.pop(name) for name in call.targets}

    def gradients_of(inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        def run(weights: dict[str, Tensor]) -> Any:
            return functional_call(call.module, {**fixed, **weights}, (inputs[None],), dict(call.keywords))

        pull: Any = vjp(run, wanted)[1]
        found: dict[str, Tensor] = pull(gradient[None])[0]
        return found

    with torch.enable_grad():
        found = vmap(gradients_of)(call.inputs, call.gradient)
    for name, gradients in found.items():
        call.targets[name].add(gradients)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _add_linear,
    nn.Embedding: _add_embedding,
    nn.Conv2d: _add_convolution,
    nn.LayerNorm: _add_layer_norm,
}
