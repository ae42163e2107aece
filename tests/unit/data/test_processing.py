"""What is put together from a picture's own tokens is what the processor would have returned for the whole."""

import pytest
import torch
from family_cases import each_family
from tiny_cases import SIZE, picture, tiny_family
from transformers import AddedToken

from mmunlearn.data import processing
from mmunlearn.data.example import LazyImage
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


def opened(images):
    return {"images": [image.open() for image in images]} if images else {}


def by_processor(processor, text, images):
    begin = processor.tokenizer.bos_token
    settings = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
    return processor(text=text, return_tensors="pt", **opened(images), **settings)


def test_every_text_gives_what_the_processor_gives(family):
    _, processor = family
    process = Processing(processor)
    for _ in range(2):
        for has_image in (True, False):
            for number, text in enumerate(texts(processor, has_image=has_image)):
                images = PICTURES[number % 2 :][:1] if has_image else ()
                same(process(text, images), by_processor(processor, text, images))


@pytest.mark.parametrize("has_image", [True, False], ids=["picture", "text"])
def test_whichever_text_came_first(family, has_image):
    _, processor = family
    images = PICTURES[:1] if has_image else ()
    asked = list(dict.fromkeys(texts(processor, has_image=has_image)))
    expected = [by_processor(processor, text, images) for text in asked]
    for first in asked:
        process = Processing(processor)
        process(first, images)
        for text, made in zip(asked, expected, strict=True):
            same(process(text, images), made)


def test_the_processor_is_asked_once_a_picture_and_once_for_all_texts(family):
    name, processor = family
    counted = Counted(processor)
    process = Processing(counted)
    for question in QUESTIONS:
        for image in PICTURES:
            process(render_prompt(processor, question, has_image=True), (image,))
        process(render_prompt(processor, question, has_image=False), ())
    assert counted.asked == (1 + len(PICTURES) * (len(QUESTIONS) if name in MELTS_INTO_TEXT else 1))


def test_several_pictures_of_a_text(family):
    """As solved questions before a question have them; each set of pictures is asked for once."""
    name, processor = family
    place, (one, two) = processor.image_token, PICTURES
    begin = processor.tokenizer.bos_token or ""
    asked = [
        f"{begin}Look: {place}\nWho is it? A painter\n{place}\nWho is it?",
        f"{begin}First: {place} Who? A {place} Who? This one",
        f"{begin}First: {place} Who? A painter of birds {place}Who? ",
    ]
    for first in asked:
        counted = Counted(processor)
        process = Processing(counted)
        process(first, (one, two))
        for pictures in ((one, two), (two, one), (one, one)):
            for text in asked:
                same(process(text, pictures), by_processor(processor, text, pictures))
        assert counted.asked == (10 if name in MELTS_INTO_TEXT else 3), first


@pytest.mark.parametrize(
    "text", ["<image> or the <image> there?", "Is it <image><image> or what?", "Is it the <image> or <image>"]
)
def test_pictures_with_too_little_text_around_them_are_left_to_the_processor(text, processor):
    counted = Counted(processor)
    process = Processing(counted)
    for _ in range(2):
        same(process(text, PICTURES), by_processor(processor, text, PICTURES))
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

    def __init__(self, processor, more):
        super().__init__(processor)
        self.more = more

    def __call__(self, *arguments, **settings):
        made = super().__call__(*arguments, **settings)
        return made | self.more(made["input_ids"].shape[1])


@pytest.mark.parametrize(
    "more",
    [
        lambda length: {"attention_mask": torch.arange(length)[None]},
        lambda length: {"places": torch.arange(length)[None]},
        lambda length: {"position_ids": torch.arange(length).expand(3, 1, length)},
        lambda length: {"bounds": torch.tensor([[1, length]])},
    ],
    ids=["mask", "places", "positions", "bounds"],
)
@pytest.mark.parametrize("text", ["Look: <image> Who?", "a<image>b", "Who?", "a"])
def test_what_cannot_be_told_apart_is_asked_each_time(more, text, processor):
    whimsical = Whimsical(processor, more)
    process = Processing(whimsical)
    for asked in (text, f"{text} 1", f"And {text}"):
        images = PICTURES[:1] if "<image>" in text else ()
        same(process(asked, images), whimsical(text=asked, return_tensors="pt", **opened(images)))
    assert whimsical.asked == 6


def test_nothing_more_is_tried_where_nothing_can_be_learned(processor):
    whimsical = Whimsical(processor, lambda length: {"bounds": torch.tensor([[1, length]])})
    process = Processing(whimsical)
    tried = []
    process._told_apart = lambda *given: tried.append(given)
    for number in range(20):
        process(f"Look: <image> Who is number {number}?", PICTURES[:1])
    assert len(tried) == processing.VAIN_ATTEMPTS


class Framed(Counted):
    """Frames each picture by other tokens."""

    def __init__(self, processor, *frames):
        super().__init__(processor)
        self.frame = str(frames[-1])
        processor.tokenizer.add_tokens(list(frames), special_tokens=frames[0].special)

    def __call__(self, *, text, **settings):
        return super().__call__(text=text.replace("<image>", f"{self.frame}<image>{self.frame}"), **settings)


@pytest.mark.parametrize(
    "frames",
    [
        [AddedToken("<frame>", lstrip=True, rstrip=True, special=True)],  # takes spaces beside it
        [AddedToken("<frame>", normalized=True, special=True)],  # changes how words beside it begin
        [AddedToken("\n" * number, normalized=False, special=False) for number in (3, 1, 2)],  # joins the text's, as Gemma's
    ],
    ids=["strips", "normalized", "line ends"],
)
def test_a_frame_that_changes_the_text_beside_it_is_asked_for_each_time(frames, processor):
    framed = Framed(processor, *frames)
    process = Processing(framed)
    for text in ("Look: a<image>b it is", "Look: a <image> b it is", "Look: a\n<image>\nb it is"):
        same(process(text, PICTURES[:1]), framed(text=text, **opened(PICTURES[:1]), return_tensors="pt"))
    assert framed.asked == 6


def test_an_ordinary_frame_is_learned(processor):
    framed = Framed(processor, AddedToken("<frame>", normalized=False, special=True))
    process = Processing(framed)
    for text in ("Look: a<image>b it is", "Look: a <image> b it is", "Look: a\n<image>\nb it is"):
        same(process(text, PICTURES[:1]), framed(text=text, **opened(PICTURES[:1]), return_tensors="pt"))
    assert framed.asked == 4


def test_marks_of_other_media_are_refused_by_the_processor_whatever_was_read_before():
    processor = tiny_family("qwen2_vl")[1]
    process = Processing(processor)
    process("What is it?", ())
    with pytest.raises(ValueError, match="no videos were passed"):
        process("What is <|video_pad|>?", ())


def test_a_picture_without_a_key_is_a_picture(processor):
    process = Processing(processor)
    process("Who is it?", ())
    nameless = LazyImage(key="", where="nowhere", read=PICTURES[0].read)
    assert "pixel_values" in process("Look: <image> Who?", (nameless,))


def test_a_tokenizer_that_cuts_does_not_cut(processor):
    processor.tokenizer.init_kwargs |= {"truncation": True, "max_length": 6}
    process = Processing(processor)
    lengths = [process(f"USER: {'Who is it? ' * number}", ())["input_ids"].shape[1] for number in (1, 2, 3, 4)]
    assert lengths == sorted(set(lengths))
    assert lengths[-1] > 12


def test_what_is_handed_out_may_be_changed_but_for_pixels(processor):
    process = Processing(processor)
    for _ in range(3):
        found = process("Look: <image> Who?", PICTURES[:1])
        same(found, processor(text="Look: <image> Who?", **opened(PICTURES[:1]), return_tensors="pt"))
        found["input_ids"].zero_()
        found["attention_mask"].zero_()
