"""Solved questions before a question: where they stand, what they leave alone, and how many pictures they bring."""

from dataclasses import replace

import pytest
import torch
from tiny_cases import SIZE, make_examples, picture

from mmunlearn.data.batch import IGNORE, Encoder, collate
from mmunlearn.data.example import Shot, examples_fingerprint
from mmunlearn.errors import DataError

PATCHES = (SIZE.image_size // SIZE.patch_size) ** 2
SHOTS = (
    Shot(question="Who is it?", answer="No", image=picture(1)),
    Shot(question="Where?", answer="Paris"),
    Shot(question="Who is it?", answer="Blue", image=picture(2)),
)
FIRST = (
    "USER: <image>\nWho is it?\nASSISTANT: No</s>USER: Where?\nASSISTANT: Paris</s>"
    "USER: <image>\nWho is it?\nASSISTANT: Blue</s>"
)
SHOWN, BARE = make_examples("asked", 2)
each_kind = pytest.mark.parametrize("example", [SHOWN, BARE], ids=["image", "text"])


@pytest.fixture
def encoder(processor):
    return Encoder(processor, max_length=2000)


@each_kind
def test_shots_are_earlier_turns(example, encoder):
    assert encoder.text(replace(example, shots=SHOTS)) == FIRST + encoder.text(example)


@each_kind
def test_the_answer_alone_is_supervised(example, encoder):
    plain, shot = encoder(example), encoder(replace(example, shots=SHOTS))
    assert torch.equal(shot.labels[shot.labels != IGNORE], plain.labels[plain.labels != IGNORE])
    own = len(plain.labels) - 1  # without the token that begins a text
    assert torch.equal(shot.labels[-own:], plain.labels[1:])
    assert bool((shot.labels[:-own] == IGNORE).all())
    assert torch.equal(shot.inputs["input_ids"][0, -own:], plain.inputs["input_ids"][0, 1:])


@each_kind
def test_a_prompt_with_shots_is_what_precedes_the_answer(example, encoder):
    asked = replace(example, shots=SHOTS)
    prompt, whole = encoder.prompt(asked), encoder(asked)
    count = int((whole.labels == IGNORE).sum())
    assert torch.equal(prompt.inputs["input_ids"], whole.inputs["input_ids"][:, :count])


@each_kind
def test_every_picture_comes_in_its_place(example, encoder, processor):
    pixels = encoder(replace(example, shots=SHOTS)).inputs["pixel_values"]
    ids = encoder(replace(example, shots=SHOTS)).inputs["input_ids"]
    wanted = [picture(1), picture(2), *([example.image] if example.image is not None else [])]
    assert len(pixels) == len(wanted)
    assert int((ids == processor.image_token_id).sum()) == PATCHES * len(wanted)
    for found, image in zip(pixels, wanted, strict=True):
        expected = processor.image_processor(image.open(), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(found, expected)


def test_one_picture_that_was_seen_before_comes_from_memory_and_is_right(encoder):
    asked = replace(BARE, shots=SHOTS[:2])
    first = encoder.prompt(asked)
    again = encoder.prompt(replace(asked, question=f"{asked.question} Tell."))
    assert torch.equal(first.inputs["pixel_values"], again.inputs["pixel_values"])


def test_examples_with_other_shots_are_not_taken_for_each_other(encoder):
    found = [
        encoder(replace(SHOWN, shots=shots)).inputs
        for shots in ((), SHOTS[:1], SHOTS[2:], (replace(SHOTS[0], answer="Yes"),), (replace(SHOTS[0], image=picture(3)),))
    ]
    for number, left in enumerate(found):
        for right in found[:number]:
            same = left["input_ids"].shape == right["input_ids"].shape and torch.equal(left["input_ids"], right["input_ids"])
            assert not (same and torch.equal(left["pixel_values"], right["pixel_values"]))


def test_fingerprints_tell_shots():
    plain, shot = examples_fingerprint([SHOWN, BARE]), examples_fingerprint([replace(SHOWN, shots=SHOTS), BARE])
    assert plain != shot != examples_fingerprint([replace(SHOWN, shots=SHOTS[:1]), BARE])


def test_the_picture_of_a_shot_changes_the_answer(encoder, model):
    def logits(example):
        batch = collate([encoder.prompt(example)], pad_token_id=encoder.pad_token_id)
        with torch.no_grad():
            return model(**batch.inputs).logits[0, -1]

    asked = replace(SHOWN, shots=SHOTS[:1])
    other = replace(SHOWN, shots=(replace(SHOTS[0], image=picture(9)),))
    assert (logits(asked) - logits(other)).abs().max() > 1e-6


def test_verbatim_is_left_alone(encoder):
    text = "USER:<image>\nWho?\nCorrect Answer: No\nUSER: <image>\nWho is it?\nASSISTANT: "
    asked = replace(SHOWN, question=text, verbatim=True, shots=SHOTS[:1])
    assert encoder.text(asked) == text
    ids = encoder.prompt(asked).inputs["input_ids"][0]
    expected = encoder.processor(
        text=text, images=[image.open() for image in asked.images()], return_tensors="pt"
    )["input_ids"][0]  # fmt: skip
    assert torch.equal(ids, expected)
    whole = encoder(asked)
    learned = encoder.processor.tokenizer.decode(whole.labels[whole.labels != IGNORE])
    assert learned == f" {SHOWN.answer}</s>"
    read = encoder.processor.tokenizer.decode(whole.inputs["input_ids"][0])
    assert read.endswith(f"Who is it?\nASSISTANT: {SHOWN.answer}</s>"), "a space at the end of a prompt is not doubled"


@pytest.mark.parametrize(
    ("example", "numbers"),
    [
        (replace(SHOWN, question="<image> Who?", shots=SHOTS), "4 image placeholders for 3 images"),
        (replace(SHOWN, question="Who?", verbatim=True), "0 image placeholders for 1 images"),
        (replace(BARE, question="<image> Who?", verbatim=True), "1 image placeholders for 0 images"),
    ],
)
def test_placeholders_and_pictures_must_agree(example, numbers, encoder):
    with pytest.raises(DataError, match=f"{example.id}: {numbers}"):
        encoder.prompt(example)


def test_a_template_that_leaves_out_earlier_pictures_is_refused(processor):
    only_last = processor.chat_template.replace(
        "{% for part in message['content'] if part['type'] == 'image' %}",
        "{% for part in message['content'] if part['type'] == 'image' and loop.last %}",
    ).replace("{% for message in messages %}", "{% for message in messages[-2:] %}")
    processor.chat_template = only_last
    with pytest.raises(DataError, match=r"image placeholders for 3 images.*chat_template\.jinja"):
        Encoder(processor, max_length=2000)(replace(SHOWN, shots=SHOTS))


def test_the_way_out_is_named_only_where_there_are_shots(processor):
    short = Encoder(processor, max_length=20)
    with pytest.raises(DataError, match=r"3 solved questions.*evaluation\.shots=zero_shot"):
        short.prompt(replace(SHOWN, shots=SHOTS))
    with pytest.raises(DataError, match="shorten the text"):
        short.prompt(replace(BARE, question="Who? " * 20))
