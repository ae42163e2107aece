"""Pictures as the world has them, encoded: sound but unusual ones, and broken ones."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

HALVES = Image.new("RGB", (16, 16), (0, 0, 200))
HALVES.paste((200, 0, 0), (0, 0, 8, 16))  # red on the left, blue on the right
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """A picture in a format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def sixteen_bit() -> bytes:
    """A grey ramp in 16 bits, from black on the left to white on the right."""
    ramp = np.tile(np.linspace(0, 65535, 16).astype("uint16"), (16, 1))
    return encoded(Image.fromarray(ramp))


def floating() -> bytes:
    """The same ramp in floating-point numbers from 0 to 1."""
    ramp = np.tile(np.linspace(0, 1, 16).astype("float32"), (16, 1))
    return encoded(Image.fromarray(ramp), "TIFF")


def turned() -> bytes:
    """A JPEG whose camera was held upside down: shown as it should be, it is blue on the left."""
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    return encoded(HALVES, "JPEG", exif=exif)


def broken_exif() -> bytes:
    """A JPEG with rubbish where the camera's notes stand."""
    return encoded(HALVES, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xff" * 20)


def animated() -> bytes:
    """Two frames, red and blue halves first."""
    return encoded(HALVES, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), (0, 255, 0))])


def transparent() -> bytes:
    """Half of it cannot be seen."""
    image = HALVES.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((16, 16)))
    return encoded(image)


def huge(edge: int = 10_000) -> bytes:
    """12 KB that unfold to a hundred million pixels."""
    return encoded(Image.new("1", (edge, edge)))


def enormous() -> bytes:
    """A header that promises four thousand million pixels, and nothing behind it."""
    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def cut_off(kind: str = "PNG") -> bytes:
    """The first half of a picture, its header whole."""
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
    return whole[: len(whole) // 2]


SOUND = {
    "1x1": encoded(Image.new("RGB", (1, 1), (9, 9, 9))),
    "RGBA": transparent(),
    "grayscale": encoded(HALVES.convert("L")),
    "palette": encoded(HALVES.quantize(4)),
    "black and white": encoded(HALVES.convert("1")),
    "CMYK": encoded(HALVES.convert("CMYK"), "JPEG"),
    "16-bit": sixteen_bit(),
    "animated GIF": animated(),
    "turned by EXIF": turned(),
    "broken EXIF": broken_exif(),
    "very wide": encoded(Image.new("RGB", (4000, 1))),
}
"""Must be read."""
BROKEN = {
    "cut off PNG": cut_off(),
    "cut off JPEG": cut_off("JPEG"),
    "text file": b"my portrait\n",
    "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "10000x10000": huge(),
    "65535x65535": enormous(),
    "zeros": bytes(2000),
    "floating-point": floating(),
}
"""Must be refused."""
