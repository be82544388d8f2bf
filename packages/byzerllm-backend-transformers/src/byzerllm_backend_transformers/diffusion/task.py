"""Pictures of texts: the task of Stable Diffusion folders."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import msgspec
import torch
from msgspec import Struct
from torch.nn.functional import interpolate

from byzerllm.errors import RequestCancelledError
from byzerllm.requests import (
    GenerateChunk,
    GenerateRequest,
    ImageRequest,
    ImageResult,
    ModelMeta,
    Usage,
)
from byzerllm_backend_transformers.diffusion.parameters import (
    Order,
    PictureParameters,
    order_of_chat,
    order_of_images,
)
from byzerllm_backend_transformers.diffusion.pipeline import load_pipeline, redrawing
from byzerllm_backend_transformers.diffusion.schedulers import new_scheduler
from byzerllm_backend_transformers.diffusion.windows import Windows, in_windows
from byzerllm_backend_transformers.tasks import Loading, Task

logger = logging.getLogger(__name__)

Report = Callable[[str], None]


class Picture(Struct, kw_only=True):
    """One drawn picture: its file, its seed, and whether the folder's safety checker blacked
    it out (None where the folder has none)."""

    file: bytes
    seed: int
    blacked_out: bool | None = None


class Drawn(Struct, kw_only=True):
    """What became of an order.

    Attributes:
        left_out: the end of the prompt, which the text encoder had no room for.
        prompt_tokens: tokens of the prompt, those left out included.
    """

    pictures: list[Picture]
    left_out: str = ""
    negative_left_out: str = ""
    prompt_tokens: int = 0


class Diffusion(Task):
    """A Stable Diffusion pipeline; orders are drawn one after the other on the model's thread."""

    capability: ClassVar[str] = "image"

    def __init__(self, loading: Loading, pipeline: Any) -> None:
        super().__init__(loading)
        self._where = f"pictures of {loading.context.model!r}"
        self._from_text = pipeline
        self._from_image = redrawing(pipeline)
        self._noise_schedule = pipeline.scheduler.config

    @classmethod
    def load(cls, loading: Loading) -> Self:
        return cls(loading, load_pipeline(loading))

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="transformers",
            architectures=self.folder.architectures,
            task="image",
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """One JSON list: an object per picture with `img64`, its PNG file in base64, and the
        parameters that it was drawn with. A stream brings the steps as `reasoning` before."""
        self.check_open()
        order = await asyncio.to_thread(
            order_of_chat, request, seed=self.parameters.seed, where=self._where
        )
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[str | None] = asyncio.Queue()

        def report(step: str) -> None:
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(steps.put_nowait, step)

        drawing = asyncio.ensure_future(self._draw(order, report, _as_json))
        drawing.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                if request.stream:
                    yield GenerateChunk(reasoning=f"{step}\n")
            text, tokens = await drawing
        finally:
            drawing.cancel()
        yield GenerateChunk(text=text, finish_reason="stop", usage=Usage(prompt_tokens=tokens))

    async def draw(self, request: ImageRequest) -> ImageResult:
        """`n` pictures. `revised_prompt` is what the text encoder had room for, where
        that is not the whole prompt."""
        self.check_open()
        loop = asyncio.get_running_loop()
        start = loop.time()
        order = await asyncio.to_thread(
            order_of_images,
            request,
            seed=self.parameters.seed,
            size=self._own_size(),
            where=self._where,
        )
        drawn = await self._draw(order, _unheard, _as_it_is)
        return ImageResult(
            images=[picture.file for picture in drawn.pictures],
            format=order.format,
            revised_prompt=order.prompt.removesuffix(drawn.left_out) if drawn.left_out else "",
            elapsed=loop.time() - start,
        )

    def free(self) -> None:
        self._from_text = self._from_image = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    async def _draw(
        self, order: Order, report: Report, finish: Callable[[Order, Drawn], Any]
    ) -> Any:
        """Draw and finish on the model's thread; a caller that leaves ends it at the next step."""
        left = threading.Event()
        try:
            return await self.compute(self._drawn, order, report, left, finish)
        finally:
            left.set()

    # On the model's thread.

    def _drawn(
        self,
        order: Order,
        report: Report,
        left: threading.Event,
        finish: Callable[[Order, Drawn], Any],
    ) -> Any:
        def check() -> None:
            if left.is_set() or self.closed:
                raise RequestCancelledError("the pictures are not wanted any more")

        tokens, left_out = self._left_out(order.prompt)
        drawn = Drawn(pictures=[], left_out=left_out, prompt_tokens=tokens)
        drawn.negative_left_out = self._left_out(order.parameters.negative_prompt)[1]
        if left_out:
            logger.warning(
                "request %s: the end of the prompt is left out, the text encoder has no room for "
                "more than %d tokens: %r",
                order.id,
                self._from_text.tokenizer.model_max_length,
                left_out,
            )
        seed = order.seed
        for number, size in enumerate(order.batches, 1):
            batch = f"batch {number} of {len(order.batches)}, " if len(order.batches) > 1 else ""
            seeds = list(range(seed, seed + size))
            seed += size
            steps = _Steps(order.id, batch, report, check)
            drawn.pictures += self._batch(order, seeds, steps)
        return finish(order, drawn)

    def _batch(self, order: Order, seeds: list[int], steps: _Steps) -> list[Picture]:
        parameters = order.parameters
        # Noise is drawn on the CPU, so that a seed means the same picture on every device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        common = {
            "prompt": order.prompt,
            # None lets a pipeline do what its model was trained with; an empty text may not.
            "negative_prompt": parameters.negative_prompt or None,
            "guidance_scale": parameters.cfg_scale,
            "num_inference_steps": parameters.sampling_steps,
            "num_images_per_prompt": len(seeds),
            "generator": generators,
            "callback_on_step_end": steps,
        }
        steps.check()
        with self._large(parameters, steps.check):
            if parameters.enable_hires:
                latents = self._first(order, {**common, "output_type": "latent"}).images
                enlarged = _enlarged(latents, parameters, self._from_text.vae_scale_factor)
                steps.phase = "high resolution, "
                result = self._again(enlarged, parameters, common)
            else:
                result = self._first(order, common)
        flags = getattr(result, "nsfw_content_detected", None) or [None] * len(seeds)
        return [
            Picture(file=_file(image, order.format), seed=seed, blacked_out=flag)
            for image, seed, flag in zip(result.images, seeds, flags, strict=True)
        ]

    def _first(self, order: Order, common: dict[str, Any]) -> Any:
        parameters = order.parameters
        if order.init_image is not None:
            images = [order.init_image] * len(common["generator"])
            return self._again(images, parameters, common)
        self._from_text.scheduler = self._scheduler(parameters)
        return self._from_text(width=parameters.width, height=parameters.height, **common)

    def _again(self, image: Any, parameters: PictureParameters, common: dict[str, Any]) -> Any:
        """Draw over pictures or latents."""
        self._from_image.scheduler = self._scheduler(parameters)
        return self._from_image(image=image, strength=parameters.strength, **common)

    def _scheduler(self, parameters: PictureParameters) -> Any:
        return new_scheduler(parameters.sampler_name, self._noise_schedule)

    @contextmanager
    def _large(self, parameters: PictureParameters, check: Callable[[], None]) -> Iterator[None]:
        """Windows for the denoising, tiles for the decoding, where they are asked for."""
        if not parameters.enable_multidiff:
            yield
            return
        windows = Windows(
            size=parameters.window_size,
            stride=parameters.stride,
            at_once=parameters.views_batch_size,
            check=check,
        )
        vae = self._from_text.vae
        vae.enable_tiling()
        try:
            with in_windows(self._from_text.unet, windows):
                yield
        finally:
            vae.disable_tiling()

    def _own_size(self) -> tuple[int, int]:
        """Width and height in pixels that the model was trained on."""
        size = self._from_text.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        factor = self._from_text.vae_scale_factor
        return width * factor, height * factor

    def _left_out(self, text: str) -> tuple[int, str]:
        """Tokens of a text, and the end of it that the text encoder does not see."""
        tokenizer = self._from_text.tokenizer
        places = tokenizer(text, return_offsets_mapping=True, verbose=False).offset_mapping
        limit = tokenizer.model_max_length
        if len(places) <= limit:
            return len(places), ""
        # The last token that is seen is the mark of the end.
        return len(places), text[places[limit - 1][0] :]


class _Steps:
    """What a pipeline calls after each step: tells how far it is, and ends what nobody wants.

    Attributes:
        phase: what is drawn, before the number of the step.
    """

    def __init__(self, id_: str, batch: str, report: Report, check: Callable[[], None]) -> None:
        self.phase = ""
        self.check = check
        self._id = id_
        self._batch = batch
        self._report = report

    def __call__(
        self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]
    ) -> dict[str, Any]:
        self.check()
        count = pipeline.num_timesteps
        text = f"{self._batch}{self.phase}step {step + 1} of {count}"
        self._report(text)
        if (step + 1) * 10 // count > step * 10 // count:
            logger.info("request %s: %s", self._id, text)
        return values


def _enlarged(latents: torch.Tensor, parameters: PictureParameters, factor: int) -> torch.Tensor:
    width, height = parameters.final_size
    mode = parameters.upscaler_mode.removesuffix("-antialiased")
    antialias = mode != parameters.upscaler_mode
    size = (height // factor, width // factor)
    enlarged: torch.Tensor = interpolate(latents, size=size, mode=mode, antialias=antialias)
    return enlarged


def _file(image: Any, format_: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format_)
    return file.getvalue()


def _as_it_is(order: Order, drawn: Drawn) -> Drawn:
    return drawn


def _unheard(step: str) -> None:
    return None


def _as_json(order: Order, drawn: Drawn) -> tuple[str, int]:
    """The answer of a chat, and the tokens of its prompt."""
    parameters = order.parameters
    width, height = parameters.final_size
    used = {
        "prompt": order.prompt,
        **{
            name: value
            for name, value in msgspec.structs.asdict(parameters).items()
            if name not in ("init_image", "width", "height")
        },
        # The picture itself would double the answer.
        "init_image": order.init_image is not None,
        "width": width,
        "height": height,
    }
    if drawn.left_out:
        used["prompt_left_out"] = drawn.left_out
    if drawn.negative_left_out:
        used["negative_prompt_left_out"] = drawn.negative_left_out
    answer = [
        {
            "img64": base64.b64encode(picture.file).decode("ascii"),
            "seed": picture.seed,
            **used,
            **({} if picture.blacked_out is None else {"nsfw": picture.blacked_out}),
        }
        for picture in drawn.pictures
    ]
    return msgspec.json.encode(answer).decode(), drawn.prompt_tokens
