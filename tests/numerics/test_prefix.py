"""Rows that begin alike, read together, against the same rows read one by one; packs against brute force."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_cases import encoder_for, picture, tiny_family

from mmunlearn.data.batch import IGNORE, collate
from mmunlearn.data.example import Example, Shot
from mmunlearn.data.processing import image_tokens
from mmunlearn.models import continuation
from mmunlearn.models.continuation import CHANGES_LOGITS, greedy, writes_plainly
from mmunlearn.models.families import FAMILIES, LLAVA
from mmunlearn.models.likelihood import answer_logits
from mmunlearn.models.prefix import (
    can_share,
    forests_of,
    in_order,
    packs_of,
    positions_in,
    read,
    row_to_continue,
    row_to_score,
)

SHARING = [name for name, family in FAMILIES.items() if family.shares_prefix]
EACH = [pytest.param(name, marks=() if name == "llava" else pytest.mark.thorough) for name in SHARING]
CPU = torch.device("cpu")
ANSWERS = ("Paris", "Paris in France", "No idea", "She was born in a small town by the sea")
WHO, WHERE = "Who is it?", "Where does this person live?"
EXAMPLES = [
    Example(id=f"{number}-{answer}", question=question, answer=answer, image=image)
    for number, (question, image) in enumerate(
        [(WHO, picture(1)), (WHERE, picture(1)), (WHO, picture(2)), (WHO, None), (WHERE, None)]
    )
    for answer in ANSWERS
]


def keys(example):
    return tuple(image.key for image in example.images())


def rows_of(encoder, examples=EXAMPLES, positions=in_order):
    """Rows to score, and behind them one row to continue for each question."""
    prompts = [example for example in examples if example.answer == ANSWERS[0]]
    return [row_to_score(encoder(example), keys(example), positions) for example in examples] + [
        row_to_continue(encoder.prompt(example), keys(example), positions) for example in prompts
    ]


def forests(encoder, rows, batch_size):
    return list(forests_of(rows, image_tokens=sorted(image_tokens(encoder.processor)), batch_size=batch_size))


def together(model, encoder, rows, batch_size):
    """Logits of every row's wanted positions, by place."""
    found = {}
    for forest in forests(encoder, rows, batch_size):
        with torch.no_grad():
            reading = read(model, rows, forest, pad_token_id=encoder.pad_token_id, device=CPU, keep=False)
        found |= {place: reading.logits[lines] for place, lines in reading.found.items()}
    return [found[place] for place in range(len(rows))]


def one_by_one(model, encoder, rows):
    """From full logits, each row alone and without a cache."""
    found = []
    for row in rows:
        cut = replace(row.encoded, labels=torch.full_like(row.encoded.labels, IGNORE))
        inputs = collate([cut], pad_token_id=encoder.pad_token_id).inputs
        with torch.no_grad():
            found.append(model(**inputs, use_cache=False).logits[0, torch.from_numpy(row.wanted)].float())
    return found


def worst(found, expected):
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))


@pytest.fixture
def encoder(processor):
    return encoder_for(processor, cache_bytes=0)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", EACH)
def test_logits_are_those_of_each_row_alone(model_type, attention):
    model, processor = tiny_family(model_type)
    model.eval().set_attn_implementation(attention)
    assert can_share(FAMILIES[model_type], model.config)
    encoder = encoder_for(processor, cache_bytes=0)
    rows = rows_of(encoder, positions=positions_in(model))
    expected = one_by_one(model, encoder, rows)
    for batch_size in (2, 100):
        assert worst(together(model, encoder, rows, batch_size), expected) < 1e-5


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_rows_and_columns_of_a_picture_are_part_of_a_position(model_type):
    """Counted as in a text, the same tokens would give other numbers; adapters around the model change nothing."""
    model, processor = tiny_family(model_type)
    encoder, family = encoder_for(processor, cache_bytes=0), FAMILIES[model_type]
    expected = one_by_one(model.eval(), encoder, rows_of(encoder))
    assert worst(together(model, encoder, rows_of(encoder), 100), expected) > 0.01
    shown, text = (encoder(next(e for e in EXAMPLES if (e.image is None) == bare)) for bare in (False, True))
    own = positions_in(model)
    assert own(shown).shape == (3, len(shown.labels))
    assert len({tuple(row) for row in own(shown).tolist()}) == 3
    assert own(text).tolist() == 3 * [list(range(len(text.labels)))]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=family.lora_modules["language"])).eval()
    rows = rows_of(encoder, positions=positions_in(adapted))
    assert worst(together(adapted, encoder, rows, 100), expected) < 1e-5


def test_families_with_other_attention_are_left_out():
    """Gemma 3's pictures look ahead, and Llama-Vision's are no tokens."""
    assert {"mllama", "gemma3"}.isdisjoint(SHARING)
    assert len(SHARING) == len(FAMILIES) - 2


def test_order_and_batch_size_change_nothing(model, encoder):
    model.eval()
    rows = rows_of(encoder)
    expected = together(model, encoder, rows, 100)
    turned = together(model, encoder, rows[::-1], 100)[::-1]
    for found in (turned, *(together(model, encoder, rows, size) for size in (1, 2, 3, 7))):
        assert worst(found, expected) < 1e-5


def test_another_picture_changes_its_rows_and_no_others(model, encoder):
    model.eval()
    before = together(model, encoder, rows_of(encoder), 100)
    changed = [replace(e, image=picture(3)) if e.image == picture(2) else e for e in EXAMPLES]
    after = together(model, encoder, rows_of(encoder, changed), 100)
    theirs = [example.image == picture(2) for example in EXAMPLES] + [number == 2 for number in range(5)]
    for own, one, other in zip(theirs, before, after, strict=True):
        assert (worst([one], [other]) > 1e-3) == own


def test_positions_are_those_of_answer_logits(model, encoder):
    """The shift by one, against the place that owns it."""
    model.eval()
    rows = rows_of(encoder)[: len(EXAMPLES)]
    with torch.no_grad():
        expected = [answer_logits(model, collate([encoder(e)], pad_token_id=encoder.pad_token_id)) for e in EXAMPLES]
    assert worst(together(model, encoder, rows, 100), expected) < 1e-5


def test_an_adapter_acts(model, encoder):
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=LLAVA.lora_modules["language"], init_lora_weights=False))
    adapted.eval()
    rows = rows_of(encoder)
    found = together(adapted, encoder, rows, 100)
    assert worst(found, one_by_one(adapted, encoder, rows)) < 1e-5
    with adapted.disable_adapter():
        assert worst(found, one_by_one(adapted, encoder, rows)) > 0.01


def test_half_precision(model, encoder):
    """Rounding aside: bfloat16 has 8 bits."""
    model.eval()
    rows = rows_of(encoder)
    exact = one_by_one(model, encoder, rows)
    found = together(model.to(torch.bfloat16), encoder, rows, 100)
    assert all(each.dtype == torch.float32 for each in found)
    assert worst(found, exact) < 0.1 * max(float(each.abs().max()) for each in exact)


# --- packs -----------------------------------------------------------------------------------------------------------


def shots_case():
    """Rows about the same two pictures whose texts differ between the pictures, and behind them."""
    shots = [Shot(question=WHO, answer=answer, image=picture(1)) for answer in ("Ann", "Bob")]
    return [
        Example(id=f"{shot.answer}-{answer}", question=WHERE, answer=answer, image=picture(2), shots=(shot,))
        for shot in shots
        for answer in ANSWERS
    ]


@pytest.mark.parametrize("examples", [EXAMPLES, shots_case()], ids=["questions", "shots"])
@pytest.mark.parametrize("most", [1, 60, 120, 10_000])
def test_a_pack_holds_every_row_as_a_path(examples, most, encoder):
    rows = [row_to_score(encoder(example), keys(example)) for example in examples]
    packs = packs_of(rows, image_tokens=[encoder.processor.image_token_id], most=most)
    assert sorted(place for pack in packs for place in pack.places) == list(range(len(rows)))
    assert [pack.size for pack in packs] == sorted(pack.size for pack in packs)
    for pack in packs:
        ids, positions = np.concatenate(pack.ids), pack.positions()
        assert len(ids) == len(positions) == pack.size
        assert pack.size <= most or len(pack.places) == 1
        allowed = np.zeros((pack.size, pack.size), dtype=bool)
        pack.sees(allowed)
        expected = np.zeros_like(allowed)
        for place, path in zip(pack.places, pack.paths, strict=True):
            assert ids[path].tolist() == rows[place].ids.tolist()
            assert positions[path].tolist() == list(range(len(path)))
            for later, token in enumerate(path):
                expected[token, path[: later + 1]] = True
        assert np.array_equal(allowed, expected)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl", pytest.param("qwen3_vl", marks=pytest.mark.thorough)])
def test_pictures_are_shared_whole_or_not_at_all(model_type):
    """Texts that differ between two pictures: each side brings both pictures, in the order of their tokens."""
    model, processor = tiny_family(model_type)
    encoder = encoder_for(processor, cache_bytes=0)
    positions = positions_in(model.eval())
    rows = [row_to_score(encoder(example), keys(example), positions) for example in shots_case()]
    (pack,) = packs_of(rows, image_tokens=sorted(image_tokens(processor)), most=10_000)
    assert len(pack.roots()) == 2
    assert worst(together(model, encoder, rows, 100), one_by_one(model, encoder, rows)) < 1e-5


def test_what_is_shared_is_read_once(encoder):
    rows = rows_of(encoder)
    (forest,) = forests(encoder, rows, 100)
    roots = [rows[place] for pack in forest for place in pack.roots()]
    assert sum(bool(root.pictures) for root in roots) == 2, "one tree a picture"
    assert sum(pack.size for pack in forest) < sum(len(row.ids) for row in rows) / 2


@pytest.mark.parametrize("batch_size", [1, 2, 5, 30])
def test_no_more_is_read_at_once_than_a_batch_of_rows_has(batch_size, encoder):
    rows = rows_of(encoder)
    longest = max(len(row.ids) for row in rows)
    found = forests(encoder, rows, batch_size)
    assert all(len(forest) * max(pack.size for pack in forest) <= batch_size * longest for forest in found)
    assert sorted(place for forest in found for pack in forest for place in pack.places) == list(range(len(rows)))


def test_where_rows_cannot_be_read_together(model):
    assert can_share(LLAVA, model.config)
    assert not can_share(replace(LLAVA, shares_prefix=False), model.config)
    for change in (
        lambda text: setattr(text, "_attn_implementation", "flash_attention_2"),
        lambda text: setattr(text, "sliding_window", 64),
        lambda text: text.rope_parameters.update(rope_type="dynamic"),
    ):
        config = copy.deepcopy(model.config)
        change(config.text_config)
        assert not can_share(LLAVA, config)


# --- replies ---------------------------------------------------------------------------------------------------------


def written_alone(model, row, limit, end_token_id, encoder):
    """By transformers, one row at a time: tokens and the smallest gap between the two best logits."""
    inputs = collate([row.encoded], pad_token_id=encoder.pad_token_id).inputs
    settings = {"eos_token_id": end_token_id, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**inputs, max_new_tokens=limit, do_sample=False, **settings)
    best = torch.cat(found.logits).topk(2).values
    return found.sequences[0, inputs["input_ids"].shape[1] :].tolist(), float((best[:, 0] - best[:, 1]).min())


def continued(model, encoder, rows, limits, end_token_id, batch_size=100):
    found = {}
    for forest in forests(encoder, rows, batch_size):
        own = {place: limits[place] for pack in forest for place in pack.places if place in limits}
        if own:
            with torch.no_grad():
                reading = read(model, rows, forest, pad_token_id=encoder.pad_token_id, device=CPU, keep=True)
            found |= greedy(model, rows, forest, reading, own, end_token_id=end_token_id)
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("model_type", EACH)
def test_replies_are_those_of_each_row_alone(model_type, batch_size):
    """With an end token that comes at different times, and rows in the same packs that are not continued."""
    model, processor = tiny_family(model_type)
    model.eval()
    encoder = encoder_for(processor, cache_bytes=0)
    examples = [replace(e, question=f"{e.question} {n}?") for n in range(3) for e in EXAMPLES]
    rows = rows_of(encoder, examples, positions_in(model))
    places = list(range(len(examples), len(rows)))
    free = [written_alone(model, rows[place], 8, -1, encoder)[0] for place in places]
    end = free[0][3]
    expected = {place: written_alone(model, rows[place], 8, end, encoder) for place in places}
    assert len({len(ids) for ids, _ in expected.values()}) > 1
    found = continued(model, encoder, rows, dict.fromkeys(places, 8), end, batch_size)
    for place in places:
        assert found[place].ids == expected[place][0]
        assert found[place].smallest_gap == pytest.approx(expected[place][1], abs=1e-4)


@pytest.mark.parametrize(("ahead", "spread"), [(1, 6), (2, 3), (4, 2), (16, 1)])
def test_keys_and_values_are_copied_when_their_room_is_used_up_and_not_before(ahead, spread, model, encoder, monkeypatch):
    """Six steps behind the first token; all rows write to the end, so that nothing else makes room. None is left over."""
    rooms = {}

    def spread_out(room, *given):
        own(room, *given)
        rooms.setdefault(room, []).append(room.ahead)

    own = continuation._Room._spread
    monkeypatch.setattr(continuation, "STEPS_AHEAD", ahead)
    monkeypatch.setattr(continuation._Room, "_spread", spread_out)
    rows = rows_of(encoder)
    places = range(len(EXAMPLES), len(rows))
    found = continued(model.eval(), encoder, rows, dict.fromkeys(places, 7), -1)
    assert [found[place].ids for place in places] == [written_alone(model, rows[place], 7, -1, encoder)[0] for place in places]
    assert [len(made) for made in rooms.values()] == [spread] * model.config.text_config.num_hidden_layers
    for room, made in rooms.items():
        assert sum(made) == 6 * made[0] // min(ahead, 6)
        assert room._all_keys.shape[2] == room.get_seq_length()


def test_no_room_is_made_where_no_step_follows(model, encoder, monkeypatch):
    made = []
    monkeypatch.setattr(continuation._Room, "_spread", lambda room, *given: made.append(room.ahead))
    rows = rows_of(encoder)
    continued(model.eval(), encoder, rows, {len(rows) - 1: 1, len(rows) - 2: 1}, -1)
    assert set(made) == {0}


def test_limits_are_each_rows_own(model, encoder):
    model.eval()
    rows = rows_of(encoder)
    limits = {place: 1 + place % 4 for place in range(len(EXAMPLES), len(rows))}
    found = continued(model, encoder, rows, limits, end_token_id=-1)
    assert {place: len(each.ids) for place, each in found.items()} == limits


def test_a_destroyed_model_writes_and_has_no_gap(model, encoder):
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    rows = rows_of(encoder)
    for each in continued(model.eval(), encoder, rows, {len(rows) - 1: 3, len(rows) - 2: 2}, end_token_id=-1).values():
        assert each.smallest_gap != each.smallest_gap


def test_settings_that_change_greedy_decoding_are_seen(model):
    assert writes_plainly(model)
    for name, plain in CHANGES_LOGITS.items():
        changed = copy.deepcopy(model)
        for value in plain:
            setattr(changed.generation_config, name, value)
            assert writes_plainly(changed)
        setattr(changed.generation_config, name, 7)
        assert not writes_plainly(changed), name
    assert not writes_plainly(torch.nn.Linear(1, 1))
