"""Pictures out of a request: decoded, checked and small enough, or one error that says why not."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageOps

from byzerllm.errors import ParameterError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
"""Most pixels of all pictures of a request, before they are scaled for the model. A few hundred
bytes can say that they are a picture of gigabytes."""
MAX_BYTES = 64 * 2**20
"""Most bytes of one picture's file."""

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<options>(;[^;,]*)*),", re.ASCII)


@dataclass(frozen=True)
class SentPicture:
    """A picture as it came: its `url`, and `where` (`message 0`)."""

    url: str
    where: str


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        image: in RGB, upright.
        name: the same for the same file, and for no other: a digest of it, with its extension.
    """

    image: Image.Image
    name: str


def read_pictures(sent: Iterable[SentPicture]) -> list[Picture]:
    """Decode data URLs, or bare base64, of PNG, JPEG, GIF (its first frame), WebP, BMP or TIFF
    files. Blocking.

    Raises:
        ParameterError: an address of another kind (nothing is fetched and no file is opened), what
            is no picture, or too much of it.
    """
    pictures: list[Picture] = []
    left = MAX_PIXELS
    for one in sent:
        picture = _decoded(_data(one), one, left)
        left -= picture.image.width * picture.image.height
        pictures.append(picture)
    return pictures


def _data(sent: SentPicture) -> bytes:
    url = sent.url
    if url.startswith(("http://", "https://")):
        raise _wrong(
            sent,
            "a model that runs here fetches nothing from addresses; send the picture itself as a "
            "data URL (data:image/png;base64,…) or as base64",
        )
    declared = _DATA_URL.match(url)
    if declared is not None and ";base64" not in declared["options"]:
        raise _wrong(sent, "a data URL is needed that is base64")
    encoded = url if declared is None else url[declared.end() :]
    if len(encoded) > MAX_BYTES * 4 // 3 + 4:
        raise _wrong(sent, f"a picture may have {MAX_BYTES // 2**20} MiB")
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(sent, "a data URL (data:image/png;base64,…) or base64 is needed") from None


def _decoded(data: bytes, sent: SentPicture, pixels_left: int) -> Picture:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > pixels_left:
                raise _too_many(sent)
            kind = str(image.format).lower()
            whole = _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many(sent) from None
    except ParameterError:
        raise
    except Exception as error:  # whatever a decoder stumbles over
        reason = f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file that can be read"
        known = isinstance(error, Image.UnidentifiedImageError)
        raise _wrong(sent, reason if known else f"{reason} ({error})") from None
    return Picture(whole, f"{hashlib.sha256(data).hexdigest()[:32]}.{kind}")


def _rgb(image: Image.Image) -> Image.Image:
    """On white where it is transparent, as most viewers show it."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    transparent = image.convert("RGBA")
    white = Image.new("RGBA", transparent.size, "white")
    white.alpha_composite(transparent)
    return white.convert("RGB")


def _too_many(sent: SentPicture) -> ParameterError:
    return _wrong(sent, f"the pictures of a request may have {MAX_PIXELS:,} pixels together")


def _wrong(sent: SentPicture, reason: str) -> ParameterError:
    return ParameterError.invalid("image_url", reason, where=sent.where)
