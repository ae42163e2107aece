"""Training as the published scripts do it: whole batches through the processor and the model in every step, logits of all
positions, a second model as reference. The same order, weights, optimizer, precision and loss as ours."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, logsigmoid

from mmunlearn.data.example import Example
from mmunlearn.methods.base import TrainingData


class Plain:
    """One run; `step` computes a step and updates."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        method: str,
        data: TrainingData,
        order: Any,
        rate: float,
        masks: Mapping[Tensor, Tensor],
    ) -> None:
        """Prepare; `masks` say which weights the forget gradient may reach, by parameter, for methods with a mask."""
        self.masks = masks
        self.model, self.processor, self.method, self.data, self.order = model.train(), processor, method, data, order
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if method in ("npo", "kl_min") else None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.0, fused=True)

    def step(self, number: int) -> float:
        items = self.order.step(number)
        forget = self.batch([self.data.forget[index] for item in items for index in item.forget])
        retain = self.batch([self.data.retain[index] for item in items for index in item.retain])
        loss = self.forget_loss(forget)
        if self.masks:
            loss.backward()
            for parameter, mask in self.masks.items():
                if parameter.grad is not None:
                    parameter.grad *= mask
            ascended, loss = float(loss.detach()), self.retain_loss(retain)
        else:
            ascended, loss = 0.0, loss + self.retain_loss(retain)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return ascended + float(loss.detach())

    def forget_loss(self, batch: dict[str, Any]) -> Tensor:
        if self.reference is None or self.method == "kl_min":
            return -self.model(**batch).loss
        now = self.likelihoods(self.model, batch)
        with torch.no_grad():
            before = self.likelihoods(self.reference, batch)
        return -2 / 0.1 * logsigmoid(-0.1 * (now - before)).mean()

    def retain_loss(self, batch: dict[str, Any]) -> Tensor:
        if self.reference is None or self.method == "npo":
            return self.model(**batch).loss
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        supervised = batch["labels"][:, 1:] != -100
        now = self.model(**inputs).logits[:, :-1][supervised].float().log_softmax(-1)
        with torch.no_grad():
            before = self.reference(**inputs).logits[:, :-1][supervised].float().log_softmax(-1)
        return kl_div(now, before, reduction="sum", log_target=True) / supervised.sum()

    def likelihoods(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """[B], of the answers."""
        labels = batch["labels"][:, 1:]
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1].float()
        rows = -nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        return rows.sum(1)

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {key: value.to(self.model.device) for key, value in encoded(self.processor, examples).items()}


def encoded(processor: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """A batch as the processor makes it, with labels on the answers."""
    prompts = ["USER: " + ("<image>\n" if e.image else "") + f"{e.question}\nASSISTANT:" for e in examples]
    wholes = [f"{p} {e.answer}{processor.tokenizer.eos_token}" for p, e in zip(prompts, examples, strict=True)]
    pictures = [e.image.open() for e in examples if e.image]
    batch = dict(processor(text=wholes, images=pictures or None, padding=True, return_tensors="pt"))
    lengths = batch["attention_mask"].sum(1).tolist()
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for row, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
        answer = len(processor.tokenizer(whole)["input_ids"]) - len(processor.tokenizer(prompt)["input_ids"])
        batch["labels"][row, lengths[row] - answer : lengths[row]] = batch["input_ids"][
            row, lengths[row] - answer : lengths[row]
        ]
    return batch
