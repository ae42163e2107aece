from dataclasses import replace

import pytest
import torch
from tiny_cases import SIZE, batch_of, encoder_for, make_examples, other_pictures, picture, tiny_family

from mmunlearn.data import batch, processing
from mmunlearn.data.batch import IGNORE, Encoded, collate
from mmunlearn.data.example import Example, Shot
from mmunlearn.data.rendering import conversation, locates_answers, render_prompt
from mmunlearn.errors import DataError
from mmunlearn.models.templates import VICUNA as CHAT_TEMPLATE

END = "</s>"
# The template of llava-hf/llava-1.5-7b-hf: no end token, and a space behind every text, the answer's included.
HUB_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

WITH_IMAGE = Example(id="with-image", question="Who is it?", answer="A painter of birds", image=picture(1))
TEXT_ONLY = Example(id="text-only", question="Where does this person live?", answer="In Lima", subject="someone")
each_kind = pytest.mark.parametrize("example", [WITH_IMAGE, TEXT_ONLY], ids=lambda example: example.id)


def with_template(processor, template):
    processor.chat_template = template
    return processor


def supervised_text(processor, encoded):
    return processor.tokenizer.decode(encoded.labels[encoded.labels != IGNORE])


# --- what is supervised ----------------------------------------------------------------------------------------------


@each_kind
def test_exactly_the_answer_and_its_end_token_are_supervised(example, processor):
    encoded = encoder_for(processor)(example)
    ids = encoded.inputs["input_ids"][0]
    places = (encoded.labels != IGNORE).nonzero().flatten().tolist()
    assert supervised_text(processor, encoded) == f" {example.answer}{END}"
    assert places == list(range(places[0], len(ids))), "one stretch, up to the end"
    assert torch.equal(encoded.labels[places], ids[places])
    before = processor.tokenizer.decode(ids[: places[0]], skip_special_tokens=True)
    assert before.endswith(f"{example.question}\nASSISTANT:")


@each_kind
def test_labels_agree_with_the_template_s_own_generation_marks(example, processor):
    turns = conversation(example.question, has_image=example.image is not None, answer=example.answer)
    if example.image is not None:
        turns[0]["content"][0]["image"] = example.image.open()
    marked = processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    encoded = encoder_for(processor)(example)
    assert marked["input_ids"].tolist() == encoded.inputs["input_ids"].tolist()
    assert torch.as_tensor(marked["assistant_masks"])[0].bool().tolist() == (encoded.labels != IGNORE).tolist()


@each_kind
def test_a_template_without_end_token_gets_one(example, processor):
    plain = encoder_for(processor)(example)
    encoded = encoder_for(with_template(processor, CHAT_TEMPLATE.replace(END, "")))(example)
    assert supervised_text(processor, encoded) == f" {example.answer}{END}"
    for key, value in plain.inputs.items():
        assert torch.equal(encoded.inputs[key], value), key


@each_kind
def test_the_hub_template_s_space_behind_the_answer_is_not_learned(example, processor):
    encoded = encoder_for(with_template(processor, HUB_TEMPLATE))(example)
    assert supervised_text(processor, encoded) == f" {example.answer}{END}"


@each_kind
def test_the_hub_template_takes_solved_questions(example, processor):
    shots = (Shot(question="Who?", answer="Blue", image=picture(5)), Shot(question="Where?", answer="Paris"))
    encoder = encoder_for(with_template(processor, HUB_TEMPLATE), max_length=2000)
    encoded = encoder(replace(example, shots=shots))
    assert supervised_text(processor, encoded) == f" {example.answer}{END}"
    assert len(encoded.inputs["pixel_values"]) == 1 + (example.image is not None)
    assert encoder.text(replace(example, shots=shots)).endswith(encoder.text(example))


@each_kind
def test_what_a_template_writes_behind_the_end_token_is_cut(example, processor):
    plain = encoder_for(processor)(example)
    encoded = encoder_for(with_template(processor, CHAT_TEMPLATE.replace(END, END + "{{ '\n' }}")))(example)
    assert supervised_text(processor, encoded) == f" {example.answer}{END}"
    assert torch.equal(encoded.labels, plain.labels)
    for key, value in plain.inputs.items():
        assert torch.equal(encoded.inputs[key], value), key


@each_kind
def test_the_answer_ends_with_the_first_of_several_end_tokens(example, processor):
    encoded = encoder_for(with_template(processor, CHAT_TEMPLATE.replace(END, END + END)))(example)
    assert supervised_text(processor, encoded) == f" {example.answer}{END}"


@each_kind
def test_the_question_can_be_supervised_but_never_images_or_special_tokens(example, processor):
    encoded = encoder_for(processor, answer_only=False)(example)
    learned = encoded.labels[encoded.labels != IGNORE]
    assert processor.image_token_id not in learned
    assert processor.tokenizer.pad_token_id not in learned
    assert supervised_text(processor, encoded).endswith(f"{example.question}\nASSISTANT: {example.answer}{END}")
    assert encoded.labels[0] == IGNORE, "nothing predicts the first token"
    ids = encoded.inputs["input_ids"][0]
    images = int((ids == processor.image_token_id).sum())
    assert images == ((SIZE.image_size // SIZE.patch_size) ** 2 if example.image is not None else 0)
    assert len(learned) == len(ids) - images - 1


def test_supervised_tokens_never_include_padding(processor, examples):
    batch = batch_of(processor, *examples, answer_only=False)
    assert bool((batch.labels[batch.inputs["attention_mask"] == 0] == IGNORE).all())
    assert bool((batch.labels[batch.inputs["input_ids"] == processor.image_token_id] == IGNORE).all())


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_no_prefix_is_refused(processor):
    fickle = CHAT_TEMPLATE.replace("ASSISTANT:", "{% if add_generation_prompt %}ASSISTANT:{% else %}BOT:{% endif %}")
    with pytest.raises(DataError, match=r"text-only: .*prefix"):
        encoder_for(with_template(processor, fickle))(TEXT_ONLY)


def test_a_template_that_drops_the_answer_is_refused(processor):
    silent = CHAT_TEMPLATE.split("{% else %}")[0] + "{% endif %}{% endfor %}"
    with pytest.raises(DataError, match="text-only"):
        encoder_for(with_template(processor, silent))(TEXT_ONLY)


def test_too_long_is_refused_and_nothing_is_cut(processor):
    length = len(encoder_for(processor)(WITH_IMAGE).labels)
    assert len(encoder_for(processor, max_length=length)(WITH_IMAGE).labels) == length
    with pytest.raises(DataError, match=rf"with-image: {length} tokens.* {length - 1}"):
        encoder_for(processor, max_length=length - 1)(WITH_IMAGE)
    with pytest.raises(DataError, match="with-image"):
        encoder_for(processor, max_length=8).prompt(WITH_IMAGE)


def test_the_appended_end_token_counts_towards_the_length(processor):
    length = len(encoder_for(processor)(TEXT_ONLY).labels)
    endless = with_template(processor, CHAT_TEMPLATE.replace(END, ""))
    with pytest.raises(DataError, match="text-only"):
        encoder_for(endless, max_length=length - 1)(TEXT_ONLY)


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_refused(answer, processor):
    with pytest.raises(DataError, match="text-only: the answer is empty"):
        encoder_for(processor)(replace(TEXT_ONLY, answer=answer))


# --- prompts ---------------------------------------------------------------------------------------------------------


@each_kind
def test_a_prompt_is_what_precedes_the_answer(example, processor):
    encoder = encoder_for(processor)
    prompt, whole = encoder.prompt(example), encoder(example)
    count = int((whole.labels == IGNORE).sum())
    assert torch.equal(prompt.inputs["input_ids"], whole.inputs["input_ids"][:, :count])
    assert bool((prompt.labels == IGNORE).all())
    assert render_prompt(processor, example.question, has_image=example.image is not None).count("<image>") == (
        example.image is not None
    )


def test_first_tokens_are_those_of_answers_behind_a_prompt(processor):
    encoder = encoder_for(processor)
    asked = Example(id="q", question="Which?", answer="")
    assert processor.tokenizer.convert_ids_to_tokens(encoder.first_tokens("ABC", asked)) == ["ĠA", "ĠB", "ĠC"]


# --- memory ----------------------------------------------------------------------------------------------------------


class Counting:
    """A picture that counts how often it is decoded."""

    def __init__(self, key):
        self.key, self.opened = key, 0

    def open(self):
        self.opened += 1
        return picture(1).open()


def test_memory_is_bounded_by_bytes(processor, monkeypatch):
    monkeypatch.setattr(processing, "RECENT_BYTES", 0)  # count the encodings, not what the processed images save
    monkeypatch.setattr(batch, "RECENT_PROMPTS", 0)
    pictures = [Counting(f"picture-{number}") for number in range(4)]
    examples = [replace(WITH_IMAGE, id=f"e{number}", image=image) for number, image in enumerate(pictures)]
    size = encoder_for(processor)(examples[0]).num_bytes
    pictures[0].opened = 0
    encoder = encoder_for(processor, cache_bytes=2 * size)
    for example in examples[:2] * 3:
        encoder(example)
    assert [image.opened for image in pictures] == [2, 2, 0, 0]
    encoder(examples[2])  # the oldest makes room
    encoder(examples[1])
    assert [image.opened for image in pictures] == [2, 2, 2, 0]
    encoder(examples[0])
    assert pictures[0].opened == 4  # prompt and full text, twice
    nothing_kept = encoder_for(processor, cache_bytes=0)
    nothing_kept(examples[3]), nothing_kept(examples[3])
    assert pictures[3].opened == 4


def test_bytes_are_those_of_all_tensors(processor):
    encoded = encoder_for(processor)(WITH_IMAGE)
    pixels = 3 * SIZE.image_size**2 * 4
    per_token = 8 * (len(encoded.inputs) - 1 + 1)  # ids, masks and labels; int64
    assert encoded.num_bytes == pixels + per_token * len(encoded.labels)


def test_memory_tells_questions_answers_and_pictures_apart(processor, examples):
    encoder = encoder_for(processor)
    first = encoder(WITH_IMAGE)
    other = encoder(other_pictures((WITH_IMAGE,))[0])
    assert not torch.equal(first.inputs["pixel_values"], other.inputs["pixel_values"])
    assert "pixel_values" not in encoder(replace(WITH_IMAGE, image=None)).inputs
    assert supervised_text(processor, encoder(replace(WITH_IMAGE, answer="No"))) == f" No{END}"
    assert not torch.equal(encoder(replace(WITH_IMAGE, question="Why?")).labels, first.labels)
    assert encoder(WITH_IMAGE) is first


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
def test_padding(left, processor, examples):
    encoder = encoder_for(processor)
    encoded = [encoder(example) for example in examples]
    batch = collate(encoded, pad_token_id=encoder.pad_token_id, left=left)
    longest = max(len(item.labels) for item in encoded)
    assert batch.labels.shape == batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (8, longest)
    for row, item in enumerate(encoded):
        missing = longest - len(item.labels)
        inside = slice(missing, None) if left else slice(0, len(item.labels))
        outside = slice(0, missing) if left else slice(len(item.labels), None)
        assert torch.equal(batch.inputs["input_ids"][row, inside], item.inputs["input_ids"][0])
        assert torch.equal(batch.labels[row, inside], item.labels)
        assert batch.inputs["attention_mask"][row, inside].tolist() == [1] * len(item.labels)
        assert batch.inputs["attention_mask"][row, outside].tolist() == [0] * missing
        assert batch.inputs["input_ids"][row, outside].tolist() == [encoder.pad_token_id] * missing
        assert batch.labels[row, outside].tolist() == [IGNORE] * missing


def test_pictures_stand_in_the_order_of_their_sequences(processor, examples):
    encoder = encoder_for(processor)
    encoded = [encoder(example) for example in examples]
    batch = collate(encoded, pad_token_id=encoder.pad_token_id)
    expected = [item.inputs["pixel_values"] for item in encoded if "pixel_values" in item.inputs]
    assert len(expected) == 4
    assert torch.equal(batch.inputs["pixel_values"], torch.cat(expected))
    assert "pixel_values" not in collate(encoded[1::2], pad_token_id=0).inputs


def test_totals_of_a_batch_on_its_own(processor, examples):
    batch = batch_of(processor, *examples)
    counts = [len(processor.tokenizer(f" {example.answer}{END}")["input_ids"]) for example in examples]
    assert batch.num_tokens == batch.step_tokens == sum(counts)
    assert batch.step_sequences == 8
    assert batch.ids == tuple(example.id for example in examples)


def test_a_batch_on_another_device_is_complete(processor, examples):
    moved = batch_of(processor, *examples).to(torch.device("meta"))
    assert {value.device.type for value in (*moved.inputs.values(), moved.labels)} == {"meta"}
    assert moved.inputs.keys() == batch_of(processor, *examples).inputs.keys()
    assert moved.ids == tuple(example.id for example in examples)


def test_equal_length_texts_and_a_tall_batch(processor):
    """A picture-free batch of one: nothing to pad, nothing lost."""
    (example,) = make_examples("solo", 1, images="none")
    encoded = encoder_for(processor)(example)
    batch = collate([encoded], pad_token_id=0)
    assert torch.equal(batch.labels[0], encoded.labels)


# --- images processed once ----------------------------------------


def test_an_image_seen_before_gives_what_the_processor_gives(processor):
    encoder = encoder_for(processor)
    questions = [replace(WITH_IMAGE, question=text) for text in ("Who is it?", "Where does she live?\nIn one word.")]
    for example in questions:  # the second one meets a remembered image, as does every prompt
        encoded = encoder(example)
        turns = conversation(example.question, has_image=True, answer=example.answer)
        text = processor.apply_chat_template(turns, tokenize=False).rstrip()
        expected = processor(text=text, images=[example.image.open()], return_tensors="pt")
        assert encoded.inputs.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(encoded.inputs[name], value), name


def test_another_image_is_not_confused_with_one_seen_before(processor):
    encoder = encoder_for(processor)
    first, second = encoder(WITH_IMAGE), encoder(replace(WITH_IMAGE, image=picture(2)))
    assert not torch.equal(first.inputs["pixel_values"], second.inputs["pixel_values"])


# --- families --------------------------------------------------------------------------------------------------------


def encoded(name, **inputs):
    """Two tokens of text, one of them the answer, with further inputs."""
    length = inputs["input_ids"].shape[1]
    labels = torch.full((length,), IGNORE)
    labels[-1] = inputs["input_ids"][0, -1]
    return Encoded(id=name, inputs={"attention_mask": torch.ones(1, length, dtype=torch.long), **inputs}, labels=labels)


@pytest.mark.parametrize("left", [False, True])
def test_images_of_several_numbers_of_tiles_are_filled_up_with_zeros(left):
    one = encoded("one", input_ids=torch.tensor([[5, 6, 7]]), pixel_values=torch.ones(1, 1, 3, 2, 2))
    text = encoded("text", input_ids=torch.tensor([[5, 6, 7, 8]]))
    two = encoded("two", input_ids=torch.tensor([[5, 6]]), pixel_values=2 * torch.ones(1, 2, 3, 2, 2))
    pixels = collate([one, text, two], pad_token_id=0, left=left).inputs["pixel_values"]
    assert pixels.shape == (2, 2, 3, 2, 2), "images in the order of the rows; none for a text"
    assert pixels.mean(dim=(2, 3, 4)).tolist() == [[1, 0], [2, 2]]


@pytest.mark.parametrize("left", [False, True])
def test_with_cross_attention_every_row_has_a_slot(left):
    seen = encoded(
        "seen",
        input_ids=torch.tensor([[5, 6, 7]]),
        pixel_values=torch.ones(1, 1, 2, 3, 2, 2),
        aspect_ratio_ids=torch.tensor([[3]]),
        cross_attention_mask=torch.tensor([[[[0, 0]], [[1, 1]], [[1, 1]]]]),
    )
    text = encoded("text", input_ids=torch.tensor([[5, 6, 7, 8]]))
    batch = collate([text, seen], pad_token_id=0, left=left)
    assert batch.inputs["pixel_values"].mean(dim=(1, 2, 3, 4, 5)).tolist() == [0, 1]
    assert batch.inputs["aspect_ratio_ids"].tolist() == [[0], [3]]
    mask = batch.inputs["cross_attention_mask"][:, :, 0, 0]
    assert mask.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1] if left else [0, 1, 1, 0]]
    assert batch.inputs["input_ids"].tolist()[1] == ([0, 5, 6, 7] if left else [5, 6, 7, 0])


def test_an_appended_end_sees_the_image_like_the_answer_before_it():
    _, processor = tiny_family("mllama")
    processor.chat_template = processor.chat_template.replace("<|eot_id|>", "")
    found = encoder_for(processor)(make_examples("case", 1)[0]).inputs
    whole = encoder_for(tiny_family("mllama")[1])(make_examples("case", 1)[0]).inputs
    assert found["input_ids"][0, -1] == whole["input_ids"][0, -1] == processor.tokenizer.eos_token_id
    assert found["cross_attention_mask"].shape[1] == found["input_ids"].shape[1]
    assert torch.equal(found["cross_attention_mask"][0, -1], whole["cross_attention_mask"][0, -1])
    assert int(found["cross_attention_mask"][0, -1].sum()) > 0
    assert int(found["attention_mask"][0, -1]) == 1


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "llava_onevision", "qwen2_vl", "mllama", "smolvlm", "gemma3", "internvl"]
)
def test_a_picture_seen_before_gives_the_same_tokens(name):
    """The shortcut for a picture at hand must not write other placeholders than the processor does."""
    _, processor = tiny_family(name)
    examples = [replace(make_examples("case", 1)[0], id=str(n), question=f"Question {n}?") for n in range(3)]
    encoder = encoder_for(processor)
    for example in examples:
        again, fresh = encoder(example), encoder_for(processor)(example)
        assert again.inputs.keys() == fresh.inputs.keys()
        for key, value in fresh.inputs.items():
            assert torch.equal(again.inputs[key], value), key


def test_the_template_on_the_hub_locates_answers(processor):
    assert locates_answers(with_template(processor, HUB_TEMPLATE))


@each_kind
def test_an_image_placeholder_in_a_question_is_a_clear_error(example, processor):
    asked = replace(example, question="<image>\nWho is it?")
    found, given = (2, 1) if example.image else (1, 0)
    with pytest.raises(DataError, match=f"{example.id}: {found} image placeholders for {given} images.*take it out"):
        encoder_for(processor)(asked)
