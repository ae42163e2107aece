"""What is put together from a picture's own tokens is what the processor would have returned for the whole."""

import pytest
import torch
from family_cases import each_family
from tiny_cases import SIZE, picture, tiny_family
from transformers import AddedToken

from mmunlearn.data import processing
from mmunlearn.data.processing import Processing
from mmunlearn.data.rendering import render_prompt

MELTS_INTO_TEXT = ["gemma3"]
"""Writes line ends around a picture, which its tokenizer joins with those of the text: the processor is asked each time."""
WIDE = (2 * SIZE.image_size, SIZE.image_size)
PICTURES = (picture(1), picture(2, shape=WIDE))
QUESTIONS = ("Who is it?", "Where does she live?\n\nA. In Lima\nB.  Elsewhere", " ", "\n", "né Å中 🙂 </p>")


class Counted:
    """A processor that counts what it is asked."""

    def __init__(self, processor):
        self.processor, self.asked = processor, 0

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, *arguments, **settings):
        self.asked += 1
        return self.processor(*arguments, **settings)


@pytest.fixture(params=each_family())
def family(request):
    return request.param, tiny_family(request.param)[1]


def texts(processor, *, has_image):
    """Prompts as the template writes them, and raw texts with the placeholder within, at the end and at the beginning."""
    rendered = [render_prompt(processor, question, has_image=has_image) for question in QUESTIONS]
    place = processor.image_token if has_image else ""
    raw = [f"Look: {place}\nWho is it?", f"Who is it? {place}", f"{place} Who is it?", f"a{place}b"]
    begin = processor.tokenizer.bos_token or ""
    return [*rendered, *raw, f"Look: {begin}{place} Who?", f"Look: {place} {begin}", f"{begin}Look: {place} {begin}Who?", *raw]


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def test_every_text_gives_what_the_processor_gives(family):
    _, processor = family
    process = Processing(processor)
    for _ in range(2):
        for has_image in (True, False):
            for number, text in enumerate(texts(processor, has_image=has_image)):
                images = PICTURES[number % 2 :][:1] if has_image else ()
                begin = processor.tokenizer.bos_token
                settings = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
                opened = {"images": [image.open() for image in images]} if images else {}
                same(process(text, images), processor(text=text, return_tensors="pt", **opened, **settings))


def test_the_processor_is_asked_once_a_picture_and_once_for_all_texts(family):
    name, processor = family
    counted = Counted(processor)
    process = Processing(counted)
    for question in QUESTIONS:
        for image in PICTURES:
            process(render_prompt(processor, question, has_image=True), (image,))
        process(render_prompt(processor, question, has_image=False), ())
    assert counted.asked == (1 + len(PICTURES) * (len(QUESTIONS) if name in MELTS_INTO_TEXT else 1))


def test_several_pictures_are_left_to_the_processor(processor):
    counted = Counted(processor)
    process = Processing(counted)
    for _ in range(2):
        same(
            process("<image> or <image>?", PICTURES),
            processor(text="<image> or <image>?", images=[image.open() for image in PICTURES], return_tensors="pt"),
        )
    assert counted.asked == 2


def test_the_oldest_picture_makes_room(processor, monkeypatch):
    monkeypatch.setattr(processing, "RECENT_BYTES", 2 * 3 * SIZE.image_size**2 * 4)
    counted = Counted(processor)
    process = Processing(counted)
    one, two, three = (picture(seed) for seed in range(3))
    asked = []
    for image in (one, two, one, three, one, two):  # `one` was used last when `three` came
        process("Look: <image> Who?", (image,))
        asked.append(counted.asked)
    assert asked == [1, 2, 2, 3, 3, 4]


class Whimsical(Counted):
    """Its answer depends on more than the tokens on both sides of the picture."""

    def __init__(self, processor, key):
        super().__init__(processor)
        self.key = key

    def __call__(self, *arguments, **settings):
        made = super().__call__(*arguments, **settings)
        made[self.key] = torch.arange(made["input_ids"].shape[1])[None]
        return made


@pytest.mark.parametrize("key", ["attention_mask", "places"])
@pytest.mark.parametrize("text", ["Look: <image> Who?", "Who?"])
def test_what_cannot_be_told_apart_is_asked_each_time(key, text, processor):
    whimsical = Whimsical(processor, key)
    process = Processing(whimsical)
    for number in range(3):
        found = process(f"{text} {number}", PICTURES[:1] if "<image>" in text else ())
        assert found[key][0].tolist() == list(range(found["input_ids"].shape[1]))
    assert whimsical.asked == 3


class Framed(Counted):
    """Frames each picture by tokens that take spaces beside them with them, as the placeholder does not."""

    def __init__(self, processor):
        super().__init__(processor)
        frame = AddedToken("<frame>", lstrip=True, rstrip=True, special=True)
        processor.tokenizer.add_tokens([frame], special_tokens=True)

    def __call__(self, *, text, **settings):
        return super().__call__(text=text.replace("<image>", "<frame><image><frame>"), **settings)


def test_a_frame_that_takes_spaces_with_it_is_asked_for_each_time(processor):
    framed = Framed(processor)
    process = Processing(framed)
    for text in ("a<image>b", "a <image> b", "a  <image>\nb"):
        same(process(text, PICTURES[:1]), framed(text=text, images=[PICTURES[0].open()], return_tensors="pt"))
    assert framed.asked == 6
