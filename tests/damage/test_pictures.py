"""What a picture shows must reach the model: upright, as bright as it is meant to be, and never more than memory holds."""

import numpy as np
import pytest
from damage.damaged_pictures import BROKEN, HALVES, SOUND, encoded, huge
from PIL import Image

from mmunlearn.data.example import MAX_PIXELS, Example, LazyImage
from mmunlearn.errors import DataError


def opened(content):
    return LazyImage(key="k", where="file, row 3", read=lambda: content).open()


def pixels(content):
    return np.asarray(opened(content)).astype(int)


@pytest.mark.parametrize("name", ["grayscale", "palette", "CMYK", "broken EXIF", "animated GIF", "RGBA"])
def test_the_same_halves_in_every_format(name):
    expected = np.asarray(HALVES.convert("L").convert("RGB") if name == "grayscale" else HALVES).astype(int)
    assert np.abs(pixels(SOUND[name]) - expected)[:, [2, 13]].max() <= 12  # away from the edge that JPEG blurs


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = pixels(SOUND["16-bit"])
    assert ramp.shape == (16, 16, 3)
    assert np.abs(ramp[0, :, 0] - np.linspace(0, 255, 16)).max() <= 1
    assert (ramp == ramp[:1]).all()


def test_a_picture_stands_upright():
    """Half a turn: what the file has on the right is shown on the left."""
    turned, stored = pixels(SOUND["turned by EXIF"]), np.asarray(HALVES).astype(int)
    assert np.abs(turned[:, [2, 13]] - stored[::-1, ::-1][:, [2, 13]]).max() <= 12
    assert np.abs(turned[:, [2, 13]] - stored[:, [2, 13]]).max() > 100


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match=r"file, row 3: .*floating-point numbers.* save it with 8"):
        opened(BROKEN["floating-point"])


def test_the_limit_of_pixels_holds_before_anything_is_decoded():
    """The header alone is read: a file without any pixels behind it is refused for its size."""
    with pytest.raises(DataError, match="8192 x 8193 pixels are more than 67108864: scale it down"):
        opened(encoded(Image.new("1", (8192, 8193)))[:60])
    assert MAX_PIXELS == 8192 * 8192
    with pytest.raises(DataError, match="10000 x 10000"):
        opened(huge())


def test_no_message_names_an_address_in_memory():
    for content in BROKEN.values():
        with pytest.raises(DataError) as error:
            opened(content)
        assert "0x" not in str(error.value)


@pytest.mark.parametrize("name", SOUND)
def test_processors_take_every_sound_picture(name, pristine):
    """A picture of one pixel is where channels and edges are easily taken for each other."""
    from mmunlearn.data.batch import Encoder

    image = LazyImage(key=name, where=name, read=lambda: SOUND[name])
    encoder = Encoder(pristine[1], max_length=4000)
    found = encoder(Example(id="x", question="Who is it?", answer="Ada", image=image, subject="Ada"))
    (values,) = (value for key, value in found.inputs.items() if "pixel" in key)
    assert values.isfinite().all()
    assert values.shape[-3] == 3


def test_processors_keep_the_brightness_of_a_single_pixel(pristine):
    """One white pixel is prepared like a white picture."""

    def prepared(size):
        return pristine[1].image_processor(images=[Image.new("RGB", size, (255, 255, 255))], return_tensors="pt")[
            "pixel_values"
        ]

    assert (prepared((1, 1)) - prepared((32, 32))).abs().max() < 1e-6
