"""What a request says of the pictures that it wants."""

from __future__ import annotations

import base64
import binascii
import io
import random
import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from PIL import Image, ImageOps

from byzerllm.errors import CapabilityError, ParameterError
from byzerllm.messages import text_of
from byzerllm.requests import GenerateRequest, ImageRequest
from byzerllm_backend_transformers.diffusion.schedulers import sampler_named

MAX_SIDE = 4096
MAX_PIXELS = 4096 * 4096
MAX_PICTURES = 64
FORMATS = ("png", "jpeg", "webp")
_SEEDS = 2**32

UpscalerMode = Literal[
    "bilinear",
    "bilinear-antialiased",
    "bicubic",
    "bicubic-antialiased",
    "nearest",
    "nearest-exact",
]
Side = Annotated[int, Meta(ge=64, le=MAX_SIDE, multiple_of=8)]


class PictureParameters(Struct, kw_only=True, frozen=True):
    """The seed's table, with its defaults.

    Attributes:
        negative_prompt: what the picture shall not show.
        sampler_name: one of `schedulers.SAMPLERS`.
        sampling_steps: denoising steps.
        batch_size: pictures that are drawn at once.
        batch_count: how many times that is done.
        cfg_scale: classifier-free guidance; the lower, the further from the prompt. 1 and less
            switches it off, and the negative prompt with it.
        width, height: pixels.
        enable_hires: draw at `width` × `height`, enlarge the latents `scale_slider` times by
            `upscaler_mode`, and draw over them with `strength`.
        enable_multidiff: draw in windows of `window_size` × `window_size` latents (8 pixels each)
            that are `stride` latents apart, `views_batch_size` at once.
        init_image: base64 of the picture to begin with, or a data URL.
        strength: how much of a given picture is drawn anew: 0 to 1.
    """

    negative_prompt: str = ""
    sampler_name: str = "euler_a"
    sampling_steps: Annotated[int, Meta(ge=1, le=1000)] = 25
    batch_size: Annotated[int, Meta(ge=1, le=MAX_PICTURES)] = 1
    batch_count: Annotated[int, Meta(ge=1, le=MAX_PICTURES)] = 1
    cfg_scale: Annotated[float, Meta(ge=0, le=100)] = 7.5
    width: Side = 768
    height: Side = 768
    enable_hires: bool = False
    upscaler_mode: UpscalerMode = "bilinear"
    scale_slider: Annotated[float, Meta(ge=1, le=8)] = 1.5
    enable_multidiff: bool = False
    views_batch_size: Annotated[int, Meta(ge=1, le=256)] = 4
    window_size: Annotated[int, Meta(ge=8, le=512)] = 64
    stride: Annotated[int, Meta(ge=1, le=512)] = 16
    init_image: str | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] = 0.5

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the pictures in pixels."""
        if not self.enable_hires:
            return self.width, self.height
        return _scaled(self.width, self.scale_slider), _scaled(self.height, self.scale_slider)


class Order(Struct, kw_only=True, frozen=True):
    """Pictures to draw.

    Attributes:
        batches: how many pictures are drawn at once, one number per batch.
        seed: the first picture's; each further one has the next number.
        init_image: the picture to begin with, of the size to draw; None for none.
        format: of the files: `png`, `jpeg` or `webp`.
    """

    id: str
    prompt: str
    parameters: PictureParameters
    batches: list[int]
    seed: int
    init_image: Any = None
    format: str = "png"


def order_of_chat(request: GenerateRequest, *, seed: int | None, where: str) -> Order:
    """The pictures that a conversation asks for by its last user message.

    Args:
        seed: the deployment's, for requests that bring none.

    Raises:
        ParameterError: names the parameter and what it takes.
        CapabilityError: a form of answer that a picture cannot have.
    """
    sampling = request.sampling
    if sampling.json_schema is not None or sampling.grammar is not None:
        raise CapabilityError(f"{where}: a picture follows no json_schema and no grammar")
    if sampling.logprobs is not None or request.tools:
        raise CapabilityError(f"{where}: a model of pictures has no logprobs and calls no tools")
    prompt, image = _prompt_of(request)
    given = dict(sampling.extra)
    if image is not None:
        if given.get("init_image") is not None:
            raise ParameterError.invalid(
                "init_image", "the message has a picture, too; give one of them", where=where
            )
        given["init_image"] = image
    parameters = _parsed(given, _NAMES, where)
    return _order(
        request.id,
        prompt,
        parameters,
        [parameters.batch_size] * parameters.batch_count,
        seed if sampling.seed is None else sampling.seed,
        where,
    )


def order_of_images(
    request: ImageRequest, *, seed: int | None, size: tuple[int, int], where: str
) -> Order:
    """The `n` pictures that an image request asks for; its `extra` takes the table's names, too.

    Args:
        seed: the deployment's, for requests that bring none.
        size: the model's own width and height.

    Raises:
        ParameterError: names the parameter and what it takes.
    """
    if request.quality not in ("", "auto"):
        raise ParameterError.invalid(
            "quality", "this model has none; sampling_steps and enable_hires decide", where=where
        )
    given = {
        name.removeprefix("gen.").removeprefix("generation."): value
        for name, value in request.extra.items()
    }
    format_ = _format(given, where)
    own_seed = given.pop("seed", None)
    if own_seed is not None:
        seed = _seed(own_seed, where)
    asked = _size(request.size, where) if request.size else None
    width, height = asked or size
    given = {"width": width, "height": height, **given}
    if asked and (given["width"], given["height"]) != asked:
        raise ParameterError.invalid("size", "give either size or width and height", where=where)
    parameters = _parsed(given, _IMAGE_NAMES, where)
    whole, rest = divmod(request.n, parameters.batch_size)
    batches = [parameters.batch_size] * whole + [rest] * bool(rest)
    order = _order(request.id, request.prompt, parameters, batches, seed, where)
    return msgspec.structs.replace(order, format=format_)


_NAMES = frozenset(PictureParameters.__struct_fields__)
# `n` says how many.
_IMAGE_NAMES = _NAMES - {"batch_count"}


def _order(
    id_: str,
    prompt: str,
    parameters: PictureParameters,
    batches: list[int],
    seed: int | None,
    where: str,
) -> Order:
    if not prompt.strip():
        raise ParameterError(f"{where}: the prompt is empty", parameter="prompt")
    count = sum(batches)
    if count > MAX_PICTURES:
        raise ParameterError.invalid(
            "batch_count",
            f"at most {MAX_PICTURES} pictures a request (got {count})",
            where=where,
        )
    _check_sizes(parameters, max(batches), where)
    if seed is None or seed < 0:
        seed = random.SystemRandom().randrange(_SEEDS)
    if seed + count > 2**63:
        raise ParameterError.invalid(
            "seed", f"-1 (random) to {2**63 - MAX_PICTURES} is needed (got {seed})", where=where
        )
    image = None
    if parameters.init_image is not None:
        image = _fitted(parameters.init_image, parameters.width, parameters.height, where)
    return Order(
        id=id_, prompt=prompt, parameters=parameters, batches=batches, seed=seed, init_image=image
    )


def _check_sizes(parameters: PictureParameters, at_once: int, where: str) -> None:
    width, height = parameters.final_size
    if max(width, height) > MAX_SIDE:
        raise ParameterError.invalid(
            "scale_slider",
            f"{parameters.scale_slider:g} makes {width}x{height} pixels; at most {MAX_SIDE} a side",
            where=where,
        )
    if width * height * at_once > MAX_PIXELS:
        raise ParameterError.invalid(
            "batch_size",
            f"{at_once} pictures of {width}x{height} at once are too much; at most "
            f"{MAX_PIXELS // (width * height)} of this size (use batch_count for more)",
            where=where,
        )
    if parameters.enable_multidiff and parameters.stride > parameters.window_size:
        raise ParameterError.invalid(
            "stride",
            f"at most window_size, {parameters.window_size}, or windows leave gaps "
            f"(got {parameters.stride})",
            where=where,
        )
    again = parameters.init_image is not None or parameters.enable_hires
    if again and int(parameters.sampling_steps * parameters.strength) < 1:
        raise ParameterError.invalid(
            "strength",
            f"{parameters.strength:g} of {parameters.sampling_steps} sampling_steps is less than "
            "one step; raise one of them",
            where=where,
        )


def _parsed(given: Mapping[str, Any], names: frozenset[str], where: str) -> PictureParameters:
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        if name not in names:
            raise ParameterError.unknown(name, names | {"seed"}, where=where)
    if "sampler_name" in values:
        values["sampler_name"] = sampler_named(str(values["sampler_name"]), where=where)
    try:
        return msgspec.convert(values, PictureParameters, strict=False)
    except msgspec.ValidationError:
        for name, value in values.items():
            _check_alone(name, value, where)
        raise


def _check_alone(name: str, value: Any, where: str) -> None:
    try:
        msgspec.convert({name: value}, PictureParameters, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at ")[0]
        shown = "" if name == "init_image" else f" (got {value!r})"
        if name == "upscaler_mode":
            reason = f"allowed: {', '.join(get_args(UpscalerMode))}"
        raise ParameterError.invalid(name, f"{reason}{shown}", where=where) from None


def _format(given: dict[str, Any], where: str) -> str:
    """The format of the files, taken out of what OpenAI's clients send beside the table's names;
    what changes nothing here goes, too."""
    given.pop("user", None)
    for name in ("background", "moderation"):
        if given.get(name) == "auto":
            del given[name]
    format_ = str(given.pop("output_format", "png"))
    if format_ not in FORMATS:
        raise ParameterError.invalid(
            "output_format", f"allowed: {', '.join(FORMATS)} (got {format_!r})", where=where
        )
    return format_


def _seed(value: Any, where: str) -> int:
    try:
        return msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError:
        raise ParameterError.invalid(
            "seed", f"a whole number is needed (got {value!r})", where=where
        ) from None


def _size(text: str, where: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,5})\s*[xX*]\s*(\d{1,5})\s*", text)
    if found is None:
        raise ParameterError.invalid(
            "size", f"WIDTHxHEIGHT is needed, such as 512x768 (got {text!r})", where=where
        )
    width, height = int(found[1]), int(found[2])
    for side in (width, height):
        if side % 8 or not 64 <= side <= MAX_SIDE:
            raise ParameterError.invalid(
                "size",
                f"sides are multiples of 8 from 64 to {MAX_SIDE} pixels (got {text!r})",
                where=where,
            )
    return width, height


def _scaled(side: int, factor: float) -> int:
    return max(8, round(side * factor / 8) * 8)


def _prompt_of(request: GenerateRequest) -> tuple[str, str | None]:
    """The text to draw and the URL of the image beside it."""
    if request.prompt is not None:
        return request.prompt, None
    messages = [m for m in request.messages or () if m.get("role") == "user"]
    if not messages:
        raise ParameterError("a user message with the prompt is needed", parameter="conversations")
    content = messages[-1].get("content")
    if content is None or isinstance(content, str):
        return content or "", None
    images = [part for part in content if part.get("type") == "image_url"]
    if len(images) > 1:
        raise ParameterError("at most one image to begin with", parameter="init_image")
    url = images[0]["image_url"] if images else None
    if isinstance(url, Mapping):
        url = url.get("url")
    return text_of(content), url


def _fitted(text: str, width: int, height: int, where: str) -> Image.Image:
    """The picture, scaled to fill the size and cropped around its centre."""
    try:
        data = base64.b64decode(_bare(text), validate=True)
    except (binascii.Error, ValueError):
        raise ParameterError.invalid(
            "init_image",
            "the base64 of an image file or a data URL is needed; addresses are not fetched",
            where=where,
        ) from None
    try:
        with warnings.catch_warnings():
            # Far more pixels than are good for anybody: refused like a file that is none.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            return ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise ParameterError.invalid(
            "init_image", f"it cannot be read as an image: {error}", where=where
        ) from None


def _bare(text: str) -> str:
    head, comma, rest = text.partition(",")
    base64_of = rest if comma and head.startswith("data:") and head.endswith(";base64") else text
    return "".join(base64_of.split())
