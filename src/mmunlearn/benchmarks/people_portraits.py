"""Drawn faces for the embedded people: what is visible of a person, and the pictures that show it.

The traits that identify somebody (hair, skin, eyewear, beard, clothing) stay the same in all portraits of a person;
expression, framing and background differ from one portrait to the next.
"""

import io
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import python_avatars as avatars
import resvg_py
from PIL import Image

from mmunlearn.errors import ConfigError

FEMALE, MALE = "female", "male"

# Styles whose outlines differ at 64 pixels and which all take the hair colour (NONE, SHAVED_SIDES, STRAIGHT_2 do not).
HAIR_STYLES = {
    FEMALE: ("BOB", "BUN", "CURLY", "CURVY", "DREADS", "MIA_WALLACE", "STRAIGHT_1", "LOOSE_HAIR", "PIXIE", "HALF_SHAVED"),
    MALE: ("SHORT_FLAT", "QUIFF", "MOHAWK", "FRO", "SIDES", "SHORT_DREADS_2", "SHAGGY", "CORNROWS", "EVIL_SPIKE", "WICK"),
}
# Colours far apart from each other, and from skin; several are not among the library's own names.
HAIR_COLORS = {
    "black": "#1E1A1C", "brown": "#7A4A2A", "blonde": "#F0C850", "red": "#D4380F", "white": "#F4F1EE", "purple": "#8E44C9",
}  # fmt: skip
CLOTHING_COLORS = {
    "red": "#D9342B", "blue": "#2463C9", "green": "#2E9E4F", "yellow": "#F7D633",
    "black": "#262E33", "white": "#FFFFFF", "pink": "#FF7EB6", "orange": "#F28C28",
}  # fmt: skip
CLOTHING_STYLES = ("HOODIE", "SHIRT_CREW_NECK", "SHIRT_V_NECK", "COLLAR_SWEATER")
SKIN_COLORS = {"pale": "#FFDBB4", "tan": "#E0A070", "brown": "#AE6A38", "dark": "#5E3C2C"}
EYEWEAR = {"nothing": "NONE", "glasses": "PRESCRIPTION_2", "sunglasses": "WAYFARERS", "eyepatch": "EYEPATCH"}
FACIAL_HAIR = {
    "nothing": "NONE", "moustache": "MOUSTACHE_MAGNUM", "short beard": "BEARD_LIGHT", "long beard": "BEARD_MAGESTIC",
}  # fmt: skip

# An eyepatch is easy to tell apart, but half a crowd of them would look odd.
_EYEWEAR_SHARES = {"nothing": 3, "glasses": 3, "sunglasses": 2, "eyepatch": 1}
_MOUTHS = ("DEFAULT", "SERIOUS", "SMILE", "TWINKLE", "SAD", "DISBELIEF", "EATING", "BIG_SMILE")
_EYES = ("DEFAULT", "HAPPY", "SIDE", "SQUINT", "SURPRISED", "WINK")
_BROWS = ("DEFAULT", "DEFAULT_NATURAL", "FLAT_NATURAL", "RAISED_EXCITED", "SAD_CONCERNED", "UP_DOWN", "ANGRY_NATURAL")
_BACKGROUNDS = ("#CFE8FF", "#E6F4D7", "#FFF1CC", "#F3E1F5", "#E4E7EB", "#D5F2EE")

_FAR = 4  # differing traits that are enough to stop looking for a better face

# The library draws into 264 x 280 units; this square holds head and shoulders.
_LEFT, _TOP, _SIDE = 12.0, 4.0, 240.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is visible of a person. Values are the words that questions and biographies use."""

    gender: str
    hair_style: str
    hair_color: str
    skin: str
    eyewear: str
    facial_hair: str
    clothing: str
    clothing_color: str

    def distance(self, other: "Look") -> int:
        """In how many traits two looks differ."""
        return sum(mine != theirs for mine, theirs in zip(self.traits, other.traits, strict=True))

    @property
    def traits(self) -> tuple[str, ...]:
        """All values, in the order of the fields."""
        return tuple(vars(self).values())  # `astuple` copies deeply, which takes seconds for a few hundred people


def draw_looks(rng: random.Random, genders: Sequence[str]) -> list[Look]:
    """One look for each entry of `genders`, all different, as different as the number of people allows.

    Raises:
        ConfigError: more people than faces.
    """
    looks: list[Look] = []
    for gender in genders:
        same = [look for look in looks if look.gender == gender]
        looks.append(_distinct_look(rng, gender, same))
    return looks


def _distinct_look(rng: random.Random, gender: str, others: Sequence[Look]) -> Look:
    """Of a few dozen draws the one farthest from all others; it is never equal to one of them."""
    best, best_distance = _random_look(rng, gender), 0
    for attempt in range(10_000):
        look = _random_look(rng, gender)
        distance = min((look.distance(other) for other in others), default=len(look.traits))
        if distance > best_distance:
            best, best_distance = look, distance
        if best_distance >= _FAR or (best_distance and attempt >= 40):
            return best
    raise ConfigError(f"No other {gender} face than the {len(others)} drawn ones was found: ask for fewer people.")


def _random_look(rng: random.Random, gender: str) -> Look:
    return Look(
        gender=gender,
        hair_style=rng.choice(HAIR_STYLES[gender]),
        hair_color=rng.choice(list(HAIR_COLORS)),
        skin=rng.choice(list(SKIN_COLORS)),
        eyewear=rng.choices(list(EYEWEAR), weights=[_EYEWEAR_SHARES[kind] for kind in EYEWEAR])[0],
        facial_hair=rng.choice(list(FACIAL_HAIR)) if gender == MALE else "nothing",
        clothing=rng.choice(CLOTHING_STYLES),
        clothing_color=rng.choice(list(CLOTHING_COLORS)),
    )


def portrait(look: Look, rng: random.Random, size: int) -> bytes:
    """One picture of a person as PNG, RGB, `size` x `size` pixels.

    Args:
        look: what stays the same in every portrait.
        rng: decides expression, framing and background.
        size: pixels along each edge.
    """
    mouth, eyes, brows = rng.choice(_MOUTHS), rng.choice(_EYES), rng.choice(_BROWS)
    side = _SIDE * rng.uniform(0.92, 1.08)
    middle = _LEFT + _SIDE / 2 + rng.uniform(-10, 10), _TOP + _SIDE / 2 + rng.uniform(-8, 8)
    frame = f"{middle[0] - side / 2:.2f} {middle[1] - side / 2:.2f} {side:.2f} {side:.2f}"
    return _drawn(look, mouth, eyes, brows, frame, rng.choice(_BACKGROUNDS), size)


@lru_cache(maxsize=512)
def _drawn(look: Look, mouth: str, eyes: str, brows: str, frame: str, background: str, size: int) -> bytes:
    """A portrait from all that was decided; kept, since every layout and stand-in of the same people shows the same."""
    avatar = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,  # the background is painted by the rasteriser, without a circle
        top=avatars.HairType[look.hair_style],
        hair_color=HAIR_COLORS[look.hair_color],
        facial_hair=avatars.FacialHairType[FACIAL_HAIR[look.facial_hair]],
        facial_hair_color=HAIR_COLORS[look.hair_color],
        skin_color=SKIN_COLORS[look.skin],
        accessory=avatars.AccessoryType[EYEWEAR[look.eyewear]],
        clothing=avatars.ClothingType[look.clothing],
        clothing_color=CLOTHING_COLORS[look.clothing_color],
        mouth=avatars.MouthType[mouth],
        eyes=avatars.EyeType[eyes],
        eyebrows=avatars.EyebrowType[brows],
    )
    drawing = str(avatar.render())
    for attribute, value in (("viewBox", frame), ("width", str(size)), ("height", str(size))):
        drawing = re.sub(rf'{attribute}="[^"]*"', f'{attribute}="{value}"', drawing, count=1)
    raster = resvg_py.svg_to_bytes(svg_string=drawing, background=background, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(raster))) as image:
        # Fitting again guards against a rasteriser that rounds the edge length; PNG without metadata is reproducible.
        square = image.convert("RGB").resize((size, size)) if image.size != (size, size) else image.convert("RGB")
    file = io.BytesIO()
    square.save(file, format="PNG", optimize=False)
    return file.getvalue()
