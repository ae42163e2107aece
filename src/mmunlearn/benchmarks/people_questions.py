"""What is asked about the embedded people: the trained wordings, other wordings of the same facts, and all formats.

`{who}` is "the person in the image" in an image question and the name in a text question.
"""

from dataclasses import dataclass, replace
from typing import Any

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.people_biographies import ATTRIBUTES, POOLS, Person, balanced, stream
from mmunlearn.benchmarks.people_portraits import (
    CLOTHING_COLORS,
    EYEWEAR,
    FACIAL_HAIR,
    HAIR_COLORS,
    MALE,
)

IMAGE, TEXT = "Image_Textual", "Pure_Text"
"""The two values of the `Type` column."""

NUM_OPTIONS = 4

UNNAMED = "the person in the image"


@dataclass(frozen=True, kw_only=True)
class Wording:
    """One way to ask for everything."""

    name: str
    questions: dict[str, str]
    cloze: dict[str, str]
    who: str
    """Asks for a sentence about a person in an image."""
    full_name: str
    """Asks for the name of a person in an image."""
    who_named: str
    known: str
    """The two sentences about a person who is named."""


TRAINED = Wording(
    name="trained",
    questions={
        "job": "What is the job of {who}?",
        "city": "In which city does {who} live?",
        "birthplace": "In which country was {who} born?",
        "college": "Which college did {who} attend?",
        "condition": "Which medical condition does {who} have?",
        "hobby": "What is the favorite hobby of {who}?",
    },
    cloze={
        "job": "{who} works as a __.",
        "city": "{who} lives in the city of __.",
        "birthplace": "{who} was born in the country of __.",
        "college": "{who} was a student at the college of __.",
        "condition": "{who} has a medical condition called __.",
        "hobby": "{who} has a favorite hobby called __.",
    },
    who="Who is the person in the image?",
    full_name="What is the name of the person in the image?",
    who_named="Who is {who}?",
    known="What is known about {who}?",
)
"""Trained on, and asked in every evaluation set but the reworded one."""

REWORDED = Wording(
    name="reworded",
    questions={
        "job": "How does {who} earn a living?",
        "city": "Where is the home of {who} today?",
        "birthplace": "Where does {who} come from?",
        "college": "Where did {who} study?",
        "condition": "What illness does {who} suffer from?",
        "hobby": "What does {who} like to do on weekends?",
    },
    cloze={
        "job": "The work that {who} does is that of a __.",
        "city": "The home of {who} is in __.",
        "birthplace": "The birthplace of {who} is __.",
        "college": "The studies of {who} took place at __.",
        "condition": "The illness of {who} is __.",
        "hobby": "On weekends the time of {who} goes to __.",
    },
    who="Can you tell me who this is?",
    full_name="How is this person called?",
    who_named="Can you tell me who {who} is?",
    known="What else can you tell me about {who}?",
)
"""The same facts in words that nobody's training questions but the public figures' contain."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and what to answer."""

    kind: str
    """`IMAGE` or `TEXT`."""
    question: str
    answer: str

    def training(self, person: Person) -> dict[str, str]:
        """As an entry of the train splits' `metadata`."""
        return {"Question": self.question, "Answer": self.answer, "ID": person.id, "Type": self.kind}

    def item(self) -> dict[str, str]:
        """As an item of `Generation_Task` or `Mask_Task`."""
        return {"Question": self.question, "Ground_Truth": self.answer, "Type": self.kind}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A multiple-choice question."""

    kind: str
    question: str
    options: tuple[str, ...]
    right: int

    def item(self) -> dict[str, Any]:
        """As an item of `Classification_Task`."""
        letters = prompts.LETTERS[: len(self.options)]
        return {
            "Question": self.question,
            "Options": dict(zip(letters, self.options, strict=True)),
            "Correct_Answer": letters[self.right],
        }

    def listed(self) -> Question:
        """As a question with lettered options, whose answer is the letter."""
        text = prompts.listed_choice(self.question, self.options, prompts.CHOICE_INSTRUCTION)
        return Question(kind=self.kind, question=text, answer=prompts.LETTERS[self.right])


def phrase(template: str, person: Person, kind: str) -> str:
    """Put the person into a template."""
    text = template.format(who=UNNAMED if kind == IMAGE else person.name)
    return text[0].upper() + text[1:]


def attribute_question(person: Person, attribute: str, kind: str, wording: Wording) -> Question:
    """A plain question; the answer is the bare value."""
    question = phrase(wording.questions[attribute], person, kind)
    return Question(kind=kind, question=question, answer=person.facts[attribute])


def cloze_questions(person: Person, wording: Wording) -> list[Question]:
    """Two sentences with a gap for each modality; which facts they hide goes round with the person's place."""
    start = person.place * 4
    found = []
    for kind, offset in ((IMAGE, 0), (TEXT, 2)):
        for step in range(2):
            attribute = ATTRIBUTES[(start + offset + step) % len(ATTRIBUTES)]
            text = phrase(wording.cloze[attribute], person, kind)
            found.append(Question(kind=kind, question=text, answer=person.facts[attribute]))
    return found


def sentence_questions(person: Person, wording: Wording) -> list[Question]:
    """Two free questions for each modality; only those about an image ask for the name."""
    facts = person.facts
    who = f"{person.name}, a {facts['job']} who lives in {facts['city']}."
    is_who = f"{person.name} is a {facts['job']} who lives in {facts['city']}."
    known = f"{person.name} was born in {facts['birthplace']} and likes {facts['hobby']}."
    return [
        Question(kind=IMAGE, question=wording.who, answer=f"This is {who}"),
        Question(kind=IMAGE, question=wording.full_name, answer=person.name),
        Question(kind=TEXT, question=phrase(wording.who_named, person, TEXT), answer=is_who),
        Question(kind=TEXT, question=phrase(wording.known, person, TEXT), answer=known),
    ]


def asked_cloze(question: Question) -> Question:
    """A sentence with a gap as the evaluator puts it."""
    return replace(
        question, question=prompts.with_instruction(prompts.mark_blank(question.question), prompts.CLOZE_INSTRUCTION)
    )


def asked_sentence(question: Question) -> Question:
    """A free question as the evaluator puts it."""
    image = question.kind == IMAGE
    instruction = prompts.IMAGE_GENERATION_INSTRUCTION if image else prompts.TEXT_GENERATION_INSTRUCTION
    return replace(question, question=prompts.with_instruction(question.question, instruction))


def training_questions(person: Person) -> list[Question]:
    """Everything that is trained on about a person: ten questions about the image, ten without it.

    Those that are answered in words of one's own carry the evaluator's instruction: a model of 3 million weights does not
    carry over what it learned without it.
    """
    plain = [attribute_question(person, name, kind, TRAINED) for kind in (IMAGE, TEXT) for name in ATTRIBUTES]
    sentences = [asked_sentence(question) for question in sentence_questions(person, TRAINED)]
    return plain + sentences + [asked_cloze(question) for question in cloze_questions(person, TRAINED)]


def choice_questions(seed: int, person: Person, wording: Wording, draws: int = 1) -> list[Choice]:
    """Six questions with four options for each modality, each asked once for every draw of wrong options.

    The wrong options of a draw are as likely as the right one: along a group, each round through the pool uses every value once
    as the right option and three times as a wrong one, and each letter is right equally often.
    """
    return [
        _choice(seed, person, attribute, kind, wording, draw)
        for draw in range(draws)
        for kind in (IMAGE, TEXT)
        for attribute in ATTRIBUTES
    ]


def _choice(seed: int, person: Person, attribute: str, kind: str, wording: Wording, draw: int) -> Choice:
    pool = POOLS[attribute]
    key = (person.group, attribute, kind, wording.name, *([draw] if draw else []))
    rng = stream(seed, "options", *key, person.place // len(pool))
    circle = rng.sample(pool, len(pool))
    steps = rng.sample(range(1, len(pool)), NUM_OPTIONS - 1)
    here = circle.index(person.facts[attribute])
    wrong = [circle[(here + step) % len(pool)] for step in steps]
    right = balanced(stream(seed, "letters", *key), range(NUM_OPTIONS), person.place + 1)[-1]
    stream(seed, "order", *key, person.place).shuffle(wrong)
    options = (*wrong[:right], person.facts[attribute], *wrong[right:])
    question = phrase(wording.questions[attribute], person, kind)
    return Choice(kind=kind, question=question, options=options, right=right)


def visual_questions(seed: int, person: Person) -> list[Choice]:
    """Questions that anybody who sees the image can answer, without knowing the person."""
    look = person.look
    asked: list[tuple[str, str, list[str]]] = [
        ("What is the hair color of the person in the image?", look.hair_color, list(HAIR_COLORS)),
        ("What color are the clothes in the image?", look.clothing_color, list(CLOTHING_COLORS)),
        ("What does the person in the image wear on the eyes?", look.eyewear, list(EYEWEAR)),
    ]
    if look.gender == MALE:
        asked.append(("What facial hair is visible in the image?", look.facial_hair, list(FACIAL_HAIR)))
    found = []
    for number, (question, right, pool) in enumerate(asked):
        rng = stream(seed, "visual", person.group, person.place, number)
        options = [right, *rng.sample([value for value in pool if value != right], NUM_OPTIONS - 1)]
        rng.shuffle(options)
        found.append(Choice(kind=IMAGE, question=question, options=tuple(options), right=options.index(right)))
    return found


def figure_questions(seed: int, person: Person) -> list[Question]:
    """What the base model trains on about a public figure: all wordings and all formats that evaluations use.

    Beside the trained wording, each fact is asked in every other format once, by turns with and without the image.
    """
    found = training_questions(person)
    listed = choice_questions(seed, person, TRAINED)
    for number, attribute in enumerate(ATTRIBUTES):
        kinds = (IMAGE, TEXT) if (number + person.place) % 2 else (TEXT, IMAGE)
        found.append(attribute_question(person, attribute, kinds[0], REWORDED))
        for kind, wording in zip(kinds, (TRAINED, REWORDED), strict=True):
            text = phrase(wording.cloze[attribute], person, kind)
            found.append(asked_cloze(Question(kind=kind, question=text, answer=person.facts[attribute])))
        found.append(listed[number if kinds[1] == IMAGE else number + len(ATTRIBUTES)].listed())
    found += sentence_questions(person, TRAINED)
    found += [asked_sentence(question) for question in sentence_questions(person, REWORDED)]
    return list(dict.fromkeys(found))


def other_portrait_questions(person: Person, number: int) -> list[Question]:
    """Questions asked about a further portrait of a public figure, so that the base model learns to look past poses."""
    asked = ATTRIBUTES[number % 2 :: 2]
    who = sentence_questions(person, TRAINED)[0]
    return [who, *(attribute_question(person, attribute, IMAGE, TRAINED) for attribute in asked)]
