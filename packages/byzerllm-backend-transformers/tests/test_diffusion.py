"""Stable Diffusion, from a deployment to pictures: tiny random pipelines, real architectures."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from byzerllm import ByzerLLM
from byzerllm.backend import BackendContext
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    CapabilityError,
    ModelLoadError,
    ModelSourceError,
    NotInstalledError,
    ParameterError,
)
from byzerllm.requests import (
    EmbedRequest,
    GenerateChunk,
    GenerateRequest,
    ImageRequest,
    SamplingParams,
)
from byzerllm_backend_transformers import TRANSFORMERS
from byzerllm_backend_transformers.backend import TransformersBackend
from byzerllm_backend_transformers.diffusion.parameters import PictureParameters
from byzerllm_backend_transformers.diffusion.schedulers import SAMPLERS, new_scheduler
from byzerllm_backend_transformers.diffusion.windows import Windows, in_windows
from hf_models.diffusion import safety_checker, stable_diffusion, stable_diffusion_xl

# diffusers hands tensors to NumPy in ways that NumPy 2 wants written otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
T = TypeVar("T")
_ids = itertools.count()
SMALL = {"width": 64, "height": 64, "sampling_steps": 4}


class Loaded:
    """A backend on an event loop of its own."""

    def __init__(self, folder: Path, type_: str = "custom/stable_diffusion", **params: Any) -> None:
        self.runner = asyncio.Runner()
        self.reports: list[str] = []
        context = BackendContext(
            model="painter",
            model_path=folder,
            model_type=type_,
            parameters=TRANSFORMERS.parameters.parse({"threads": 1, **params}, where="a test"),
            report=self.reports.append,
        )
        try:
            self.backend = self.run(TransformersBackend.create(context))
        except BaseException:
            self.runner.close()
            raise

    def run(self, work: Coroutine[Any, Any, T], limit: float = 60.0) -> T:
        return self.runner.run(asyncio.wait_for(work, limit))

    def close(self) -> None:
        self.run(self.backend.close())
        self.runner.close()

    def chunks(self, request: GenerateRequest) -> list[GenerateChunk]:
        async def read() -> list[GenerateChunk]:
            return [chunk async for chunk in self.backend.generate(request)]

        return self.run(read())

    def ask(self, prompt: str = "a cat", seed: int | None = 1, **table: Any) -> list[Any]:
        """The answer of a chat, its pictures decoded into `image`."""
        (chunk,) = self.chunks(chat(prompt, seed, **table))
        assert chunk.finish_reason == "stop"
        pictures = json.loads(chunk.text)
        for picture in pictures:
            picture["image"] = pixels(picture["img64"])
        return pictures

    def draw(self, prompt: str = "a cat", **fields: Any) -> Any:
        request = ImageRequest(id=f"draw-{next(_ids)}", prompt=prompt, **fields)
        return self.run(self.backend.draw(request))


def chat(prompt: Any, seed: int | None = 1, *, stream: bool = False, **table: Any) -> Any:
    return GenerateRequest(
        id=f"chat-{next(_ids)}",
        messages=[{"role": "user", "content": prompt}],
        sampling=SamplingParams(seed=seed, extra={**SMALL, **table}),
        stream=stream,
    )


def pixels(img64: str | bytes) -> np.ndarray[Any, Any]:
    data = base64.b64decode(img64) if isinstance(img64, str) else img64
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def as_base64(image: Image.Image) -> str:
    target = io.BytesIO()
    image.save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def painter(folder: Path) -> Iterator[Loaded]:
    loaded = Loaded(folder)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def cat() -> str:
    """A picture to begin with: dark above, light below."""
    rows = np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None]
    return as_base64(Image.fromarray(np.broadcast_to(rows, (64, 64, 3)).copy()))


# The table.


def test_defaults_are_the_tables() -> None:
    assert {
        name: getattr(PictureParameters(), name) for name in PictureParameters.__struct_fields__
    } == {
        "negative_prompt": "",
        "sampler_name": "euler_a",
        "sampling_steps": 25,
        "batch_size": 1,
        "batch_count": 1,
        "cfg_scale": 7.5,
        "width": 768,
        "height": 768,
        "enable_hires": False,
        "upscaler_mode": "bilinear",
        "scale_slider": 1.5,
        "enable_multidiff": False,
        "views_batch_size": 4,
        "window_size": 64,
        "stride": 16,
        "init_image": None,
        "strength": 0.5,
    }
    assert TRANSFORMERS.extra_parameters >= set(PictureParameters.__struct_fields__)


def test_answer_names_what_was_used(painter: Loaded) -> None:
    (picture,) = painter.ask("a cat", seed=7, negative_prompt="a dog", cfg_scale=5, width=128)
    image = picture.pop("image")
    assert picture.pop("img64")
    assert image.shape == (64, 128, 3)
    assert image.std() > 1
    assert picture == {
        "prompt": "a cat",
        "seed": 7,
        "negative_prompt": "a dog",
        "sampler_name": "euler_a",
        "sampling_steps": 4,
        "batch_size": 1,
        "batch_count": 1,
        "cfg_scale": 5,
        "width": 128,
        "height": 64,
        "enable_hires": False,
        "upscaler_mode": "bilinear",
        "scale_slider": 1.5,
        "enable_multidiff": False,
        "views_batch_size": 4,
        "window_size": 64,
        "stride": 16,
        "init_image": False,
        "strength": 0.5,
    }


def test_same_picture_as_diffusers_own(painter: Loaded, folder: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
        pipeline.scheduler.config
    )
    (expected,) = pipeline(
        "a cat",
        negative_prompt="a dog",
        width=128,
        height=64,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images
    (picture,) = painter.ask("a cat", seed=7, negative_prompt="a dog", cfg_scale=5, width=128)
    assert np.abs(picture["image"] - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_sampler(painter: Loaded, folder: Path, name: str) -> None:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler = new_scheduler(name, config)
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert scheduler.config.get("use_karras_sigmas", False) is name.endswith("_karras")
    (picture,) = painter.ask(sampler_name=name)
    assert picture["sampler_name"] == name
    assert picture["image"].std() > 1
    (single,) = painter.ask(sampler_name=name, sampling_steps=1)
    assert single["image"].std() > 1


def test_samplers_differ(painter: Loaded) -> None:
    drawn = {n: painter.ask(sampler_name=n)[0]["image"].tobytes() for n in SAMPLERS}
    # Euler's ancestral step is the one of DDPM in other coordinates.
    assert len(set(drawn.values())) >= len(SAMPLERS) - 1


@pytest.mark.parametrize(("given", "known"), [("UniPC", "unpic"), ("pndm:w", "pndm")])
def test_other_spelling_of_a_sampler(painter: Loaded, given: str, known: str) -> None:
    assert painter.ask(sampler_name=given)[0]["sampler_name"] == known


def test_values_may_be_text(painter: Loaded) -> None:
    (picture,) = painter.ask(width="128", enable_hires="false", cfg_scale="3.5")
    assert (picture["width"], picture["enable_hires"], picture["cfg_scale"]) == (128, False, 3.5)


def test_guidance_and_negative_prompt_matter(painter: Loaded) -> None:
    tables: list[dict[str, Any]] = [{}, {"cfg_scale": 1}, {"negative_prompt": "a dog"}]
    assert len({painter.ask(**table)[0]["img64"] for table in tables}) == 3


# Seeds.


def test_seed_repeats_exactly(painter: Loaded) -> None:
    first, second, other = (painter.ask(seed=seed)[0]["img64"] for seed in (5, 5, 6))
    assert first == second != other


@pytest.mark.parametrize("seed", [-1, None])
def test_random_seeds_are_told(painter: Loaded, seed: int | None) -> None:
    (first,), (second,) = painter.ask(seed=seed), painter.ask(seed=seed)
    assert first["seed"] != second["seed"]
    assert painter.ask(seed=first["seed"])[0]["img64"] == first["img64"]


def test_pictures_of_a_request_have_seeds_of_their_own(painter: Loaded) -> None:
    pictures = painter.ask(seed=10, batch_size=2, batch_count=2)
    assert [picture["seed"] for picture in pictures] == [10, 11, 12, 13]
    assert len({picture["img64"] for picture in pictures}) == 4
    (alone,) = painter.ask(seed=13)
    # Kernels may round otherwise for another size of batch.
    assert np.abs(alone["image"] - pictures[3]["image"]).max() <= 1


def test_seed_of_the_deployment(folder: Path) -> None:
    loaded = Loaded(folder, seed=42)
    try:
        assert loaded.ask(seed=None)[0]["seed"] == 42
        assert loaded.ask(seed=1)[0]["seed"] == 1
        assert loaded.draw(size="64x64", extra={"sampling_steps": 2}).images == (
            loaded.draw(size="64x64", extra={"sampling_steps": 2, "gen.seed": 42}).images
        )
    finally:
        loaded.close()


# Large pictures.


@pytest.mark.parametrize(
    "mode",
    [
        "bilinear",
        "bilinear-antialiased",
        "bicubic",
        "bicubic-antialiased",
        "nearest",
        "nearest-exact",
    ],
)
def test_high_resolution(painter: Loaded, mode: str) -> None:
    (picture,) = painter.ask(enable_hires=True, upscaler_mode=mode)
    assert (picture["width"], picture["height"]) == (96, 96)
    assert picture["image"].shape == (96, 96, 3)
    (again,) = painter.ask(enable_hires=True, upscaler_mode=mode)
    assert again["img64"] == picture["img64"]


def test_upscaler_and_scale_matter(painter: Loaded) -> None:
    modes = ["bilinear", "bicubic", "nearest"]
    drawn = [painter.ask(enable_hires=True, upscaler_mode=m)[0]["img64"] for m in modes]
    assert len(set(drawn)) == 3
    (picture,) = painter.ask(enable_hires=True, scale_slider=2, width=72, batch_size=2)[:1]
    assert picture["image"].shape == (128, 144, 3)


def test_one_window_is_the_plain_picture(painter: Loaded) -> None:
    (plain,), (windowed,) = painter.ask(), painter.ask(enable_multidiff=True)
    assert windowed["enable_multidiff"]
    assert windowed["img64"] == plain["img64"]


def test_windows_in_groups_are_windows_one_by_one(painter: Loaded) -> None:
    table = {"enable_multidiff": True, "window_size": 8, "stride": 4, "width": 128}
    (one,), (four,) = (painter.ask(views_batch_size=count, **table) for count in (1, 4))
    assert one["image"].shape == (64, 128, 3)
    assert np.abs(one["image"] - four["image"]).max() <= 1
    (plain,) = painter.ask(width=128)
    assert np.abs(plain["image"] - one["image"]).max() > 1
    assert painter.ask(width=128)[0]["img64"] == plain["img64"]


def test_windows_cover_everything() -> None:
    windows = Windows(size=8, stride=5, at_once=3, check=lambda: None)
    places = windows.places(8, 21)
    assert [(c.start, c.stop) for _, c in places] == [(0, 8), (5, 13), (10, 18), (13, 21)]
    assert Windows(size=64, stride=16, at_once=4, check=lambda: None).places(20, 30) == [
        (slice(0, 20), slice(0, 30))
    ]


def test_overlapping_windows_are_averaged() -> None:
    """A network that answers with the mean of what it sees, so that windows differ."""

    class Mean(torch.nn.Module):
        config = type("Config", (), {"out_channels": 1})
        seen: list[int]

        def forward(self, sample: Any, timestep: Any, **options: Any) -> Any:
            self.seen.append(len(sample))
            assert len(options["encoder_hidden_states"]) == len(sample)
            assert len(options["added_cond_kwargs"]["text_embeds"]) == len(sample)
            return (sample.mean(dim=(1, 2, 3), keepdim=True).expand_as(sample),)

    network = Mean()
    network.seen = []
    latents = torch.arange(12.0).reshape(1, 1, 1, 12).repeat(2, 1, 1, 1)
    conditions = {
        "encoder_hidden_states": torch.zeros(2, 3, 4),
        "added_cond_kwargs": {"text_embeds": torch.zeros(2, 5)},
    }
    with in_windows(network, Windows(size=8, stride=2, at_once=2, check=lambda: None)):
        (noise,) = network(latents, 1, **conditions)
    # Windows begin at 0, 2 and 4; their means are 3.5, 5.5 and 7.5.
    expected = [3.5, 3.5, 4.5, 4.5, 5.5, 5.5, 5.5, 5.5, 6.5, 6.5, 7.5, 7.5]
    assert noise[1, 0, 0].tolist() == expected
    assert network.seen == [4, 2]
    assert "forward" not in vars(network)


def test_high_resolution_in_windows_from_a_picture(painter: Loaded, cat: str) -> None:
    (picture,) = painter.ask(
        init_image=cat,
        enable_hires=True,
        scale_slider=2,
        enable_multidiff=True,
        window_size=8,
        stride=8,
    )
    assert picture["image"].shape == (128, 128, 3)


# From picture to picture.


def test_strength_is_the_distance_from_the_picture(painter: Loaded, cat: str) -> None:
    table = {"sampling_steps": 20, "sampler_name": "euler", "cfg_scale": 1}
    drawn = [painter.ask(init_image=cat, strength=s, **table)[0]["image"] for s in (0.05, 0.3, 0.9)]
    near, far = (np.abs(drawn[0] - other).mean() for other in drawn[1:])
    assert 0 < near < far


@pytest.mark.parametrize("form", ["data url", "lines", "jpeg", "palette", "large"])
def test_forms_of_a_picture(painter: Loaded, cat: str, form: str) -> None:
    image = Image.open(io.BytesIO(base64.b64decode(cat)))
    given = cat
    if form == "data url":
        given = f"data:image/png;base64,{cat}"
    elif form == "lines":
        given = "\n".join(cat[i : i + 76] for i in range(0, len(cat), 76))
    elif form == "jpeg":
        target = io.BytesIO()
        image.save(target, "JPEG")
        given = base64.b64encode(target.getvalue()).decode()
    elif form == "palette":
        given = as_base64(image.convert("P"))
    else:
        given = as_base64(image.resize((300, 200)))
    (picture,) = painter.ask(init_image=given)
    assert picture["init_image"] is True
    assert picture["image"].shape == (64, 64, 3)


def test_picture_beside_the_text(painter: Loaded, cat: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{cat}"}}
    (beside,) = painter.ask([{"type": "text", "text": "a cat"}, part])
    (named,) = painter.ask("a cat", init_image=cat)
    assert beside["img64"] == named["img64"]


# Other parts of a folder.


def test_stable_diffusion_xl(tmp_path: Path, cat: str) -> None:
    loaded = Loaded(stable_diffusion_xl(tmp_path / "xl"), "custom/auto")
    try:
        meta = loaded.run(loaded.backend.meta())
        assert meta.architectures == ["StableDiffusionXLPipeline"]
        assert meta.task == "image"
        assert len(loaded.ask(batch_size=2)) == 2
        hires = loaded.ask(enable_hires=True, enable_multidiff=True, window_size=8, stride=4)
        assert hires[0]["image"].shape == (96, 96, 3)
        assert loaded.ask(init_image=cat)[0]["image"].std() > 1
    finally:
        loaded.close()


def test_safety_checker_of_the_folder(tmp_path: Path) -> None:
    loaded = Loaded(stable_diffusion(tmp_path / "safe", **safety_checker()))
    try:
        (picture,) = loaded.ask()
        assert picture["nsfw"] is True
        assert picture["image"].max() == 0
    finally:
        loaded.close()


def test_half_precision_files(folder: Path, tmp_path: Path, painter: Loaded) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    half = tmp_path / "half"
    pipeline.to(dtype=torch.float16).save_pretrained(half, variant="fp16")
    assert not (half / "unet" / "diffusion_pytorch_model.safetensors").exists()
    loaded = Loaded(half)
    try:
        assert np.abs(loaded.ask()[0]["image"] - painter.ask()[0]["image"]).mean() < 5
    finally:
        loaded.close()


def test_loading_is_reported(painter: Loaded) -> None:
    assert any(phase.startswith("needs about") for phase in painter.reports)
    loaded = {phase.split(" (")[0] for phase in painter.reports if phase.endswith(" of 5)")}
    assert {"loading unet", "loading vae", "loading text_encoder"} <= loaded


def test_long_prompt_is_cut_and_said(painter: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    # A letter is a token here; 75 fit beside the marks of begin and end.
    prompt = "x " * 75 + "THE END"
    with caplog.at_level(logging.WARNING):
        (picture,) = painter.ask(prompt)
    assert picture["prompt"] == prompt
    assert picture["prompt_left_out"] == "THE END"
    assert "THE END" in caplog.text
    assert painter.ask("x " * 75)[0]["img64"] == picture["img64"]
    table = {"sampling_steps": 1}
    assert painter.draw(prompt, size="64x64", extra=table).revised_prompt == "x " * 75
    assert painter.draw("x", size="64x64", extra=table).revised_prompt == ""


# Streams, progress, cancelling.


def test_a_stream_tells_its_steps(painter: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        *steps, last = painter.chunks(
            chat("a cat", stream=True, batch_count=2, enable_hires=True, sampler_name="euler")
        )
    assert [chunk.reasoning for chunk in steps] == [
        f"batch {batch} of 2, {phase}step {step} of {count}\n"
        for batch in (1, 2)
        for phase, count in (("", 4), ("high resolution, ", 2))
        for step in range(1, count + 1)
    ]
    assert not any(chunk.text for chunk in steps)
    assert len(json.loads(last.text)) == 2
    assert last.usage is not None
    assert last.usage.prompt_tokens == len("acat") + 2
    assert "batch 2 of 2, high resolution, step 2 of 2" in caplog.text


async def _until_idle(loaded: Loaded) -> None:
    """Until the model's thread takes up something else."""
    await loaded.backend.task.compute(lambda: None)


def test_leaving_a_stream_ends_the_drawing(painter: Loaded) -> None:
    async def leave() -> float:
        chunks = painter.backend.generate(chat("a cat", stream=True, sampling_steps=1000))
        async with aclosing(chunks) as source:
            async for chunk in source:
                assert chunk.reasoning.startswith("step 1 ")
                break
        start = time.monotonic()
        await _until_idle(painter)
        return time.monotonic() - start

    assert painter.run(leave()) < 2
    assert painter.ask()


@pytest.mark.parametrize("table", [{}, {"enable_multidiff": True, "window_size": 8, "stride": 1}])
def test_cancelling_ends_the_drawing(painter: Loaded, table: dict[str, Any]) -> None:
    async def cancel() -> float:
        extra = {"sampling_steps": 1000, **table}
        request = ImageRequest(id="cancelled", prompt="a cat", size="128x128", extra=extra)
        drawing = asyncio.ensure_future(painter.backend.draw(request))
        await asyncio.sleep(0.3)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        start = time.monotonic()
        await _until_idle(painter)
        return time.monotonic() - start

    assert painter.run(cancel()) < 2
    assert painter.ask()


def test_closing_ends_the_drawing(folder: Path) -> None:
    loaded = Loaded(folder)

    async def close() -> None:
        drawing = asyncio.ensure_future(
            loaded.backend.draw(
                ImageRequest(id="1", prompt="x", size="64x64", extra={"sampling_steps": 1000})
            )
        )
        await asyncio.sleep(0.3)
        async with asyncio.timeout(5):
            await loaded.backend.close()
        with pytest.raises(ByzerLLMError):
            await drawing
        with pytest.raises(BackendError, match="closed"):
            await loaded.backend.draw(ImageRequest(id="2", prompt="x", size="64x64"))

    loaded.run(close())
    loaded.runner.close()


def test_the_loop_stays_free(painter: Loaded) -> None:
    async def longest_pause() -> float:
        drawing = asyncio.ensure_future(
            painter.backend.draw(
                ImageRequest(id="1", prompt="x", size="128x128", extra={"sampling_steps": 30})
            )
        )
        longest, last = 0.0, time.monotonic()
        while not drawing.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await drawing
        return longest

    assert painter.run(longest_pause()) < 1


# Images requests.


def test_images_request(painter: Loaded) -> None:
    result = painter.draw(
        n=3, size="128x64", extra={"batch_size": 2, "sampling_steps": 2, "generation.seed": 5}
    )
    assert result.format == "png"
    assert [pixels(image).shape for image in result.images] == [(64, 128, 3)] * 3
    (own,) = painter.draw(extra={"sampling_steps": 1, "user": "me", "background": "auto"}).images
    assert pixels(own).shape == (64, 64, 3)
    jpeg = painter.draw(extra={"sampling_steps": 1, "output_format": "jpeg"})
    assert jpeg.format == "jpeg"
    assert jpeg.images[0].startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "big"}, "'size'.*WIDTHxHEIGHT"),
        ({"size": "65x64"}, "'size'.*multiples of 8"),
        ({"size": "5000x5000"}, "'size'.*4096"),
        ({"size": "64x64", "extra": {"width": 128}}, "'size'.*either"),
        ({"quality": "hd"}, "'quality'.*sampling_steps"),
        ({"n": 65}, "64 pictures"),
        ({"extra": {"style": "vivid"}}, "unknown parameter 'style'.*allowed: .*sampler_name"),
        ({"extra": {"seed": "x"}}, "'seed'"),
        ({"extra": {"batch_count": 2}}, "unknown parameter 'batch_count'"),
        ({"extra": {"output_format": "gif"}}, "'output_format'.*png, jpeg, webp"),
        ({"prompt": " "}, "prompt is empty"),
    ],
)
def test_bad_images_request(painter: Loaded, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        painter.draw(**fields)


# Bad input.


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sampler_name": "eulr_a"}, "'sampler_name'.*did you mean 'euler_a'.*dpm2-a"),
        ({"sampler_name": "w"}, "'sampler_name'.*allowed: ddim"),
        ({"sampling_steps": 0}, "'sampling_steps'.*>= 1"),
        ({"sampling_steps": "many"}, "'sampling_steps'.*many"),
        ({"width": 100}, "'width'.*multiple of 8.*got 100"),
        ({"height": 8192}, "'height'.*4096"),
        ({"width": 32}, "'width'.*64"),
        ({"batch_size": 0}, "'batch_size'"),
        ({"batch_size": 8, "batch_count": 9}, "at most 64 pictures"),
        ({"batch_size": 2, "width": 4096, "height": 4096}, "'batch_size'.*at most 1 of this"),
        ({"cfg_scale": -1}, "'cfg_scale'"),
        ({"cfg_scale": float("nan")}, "'cfg_scale'"),
        ({"enable_hires": "perhaps"}, "'enable_hires'"),
        ({"upscaler_mode": "lanczos"}, "'upscaler_mode'.*nearest-exact.*lanczos"),
        ({"enable_hires": True, "scale_slider": 8, "width": 1024}, "'scale_slider'.*8192"),
        ({"scale_slider": 0.5}, "'scale_slider'"),
        ({"enable_multidiff": True, "stride": 65}, "'stride'.*window_size, 64"),
        ({"views_batch_size": 0}, "'views_batch_size'"),
        ({"strength": 0}, "'strength'"),
        ({"strength": 1.5}, "'strength'"),
        ({"enable_hires": True, "strength": 0.1}, "'strength'.*less than one step"),
        ({"init_image": "https://example.com/cat.png"}, "'init_image'.*not fetched"),
        ({"init_image": "bm8gaW1hZ2U="}, "'init_image'.*cannot be read"),
        ({"init_image": 5}, "'init_image'"),
        ({"seed": 2**63}, "'seed'"),
        ({"typical_p": 0.5}, "unknown parameter 'typical_p'"),
    ],
)
def test_bad_table(painter: Loaded, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        painter.ask(**{"seed": 1, **table})
    assert len(str(caught.value)) < 700


def test_bad_pictures(painter: Loaded, cat: str) -> None:
    cut = base64.b64encode(base64.b64decode(cat)[:100]).decode()
    with pytest.raises(ParameterError, match="cannot be read"):
        painter.ask(init_image=cut)
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    with pytest.raises(ParameterError, match="cannot be read"):
        painter.ask(init_image=base64.b64encode(huge.getvalue()).decode())
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{cat}"}}
    with pytest.raises(ParameterError, match="at most one image"):
        painter.ask([{"type": "text", "text": "a cat"}, part, part])
    with pytest.raises(ParameterError, match="give one of them"):
        painter.ask([{"type": "text", "text": "a cat"}, part], init_image=cat)
    with pytest.raises(ParameterError, match="prompt is empty"):
        painter.ask(" ")
    with pytest.raises(ParameterError, match="user message"):
        painter.chunks(
            GenerateRequest(id="1", messages=[{"role": "system", "content": "You draw."}])
        )


def test_what_pictures_cannot_have(painter: Loaded) -> None:
    for sampling in (SamplingParams(json_schema={"type": "object"}), SamplingParams(logprobs=1)):
        with pytest.raises(CapabilityError):
            painter.chunks(GenerateRequest(id="1", prompt="a cat", sampling=sampling))
    with pytest.raises(CapabilityError, match="embedding"):
        painter.run(painter.backend.embed(EmbedRequest(id="1", texts=["a"])))


def test_out_of_memory_is_told_and_survived(
    painter: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator's own error, from a batch of latents that no machine has room for."""
    unet = painter.backend.task._from_text.unet  # type: ignore[attr-defined]
    monkeypatch.setattr(unet, "forward", lambda *a, **o: torch.empty(2**55), raising=False)
    with pytest.raises(BackendError, match="not enough memory for this request"):
        painter.ask()
    monkeypatch.undo()
    assert painter.ask()


# Bad folders.


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (empty / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    other = copy("other")
    index = json.loads((other / "model_index.json").read_text())
    flux = {**index, "_class_name": "FluxPipeline"}
    (other / "model_index.json").write_text(json.dumps(flux))
    lost = copy("lost")
    shutil.rmtree(lost / "vae")
    cut = copy("cut")
    weights = cut / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    file = tmp_path / "sd.safetensors"
    file.write_bytes(b"")
    inpainting = copy("inpainting")
    config = json.loads((inpainting / "unet" / "config.json").read_text())
    unet = diffusers.UNet2DConditionModel.from_config({**config, "in_channels": 9})
    unet.save_pretrained(inpainting / "unet")
    for path, message in (
        (empty, "no model_index.json"),
        (other, "FluxPipeline.*StableDiffusionXLPipeline"),
        (lost, "lacks the weights of its vae"),
        (cut, "cut off"),
        (file, "from_single_file"),
        (inpainting, "9 channels"),
    ):
        with pytest.raises(ModelSourceError, match=message):
            Loaded(path)


def test_parameters_that_do_not_go_with_pictures(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="quantization"):
        Loaded(folder, quantization=8)
    with pytest.raises(ModelLoadError, match="lora_path"):
        Loaded(folder, lora_path="/adapters/one")


def test_too_large_for_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from byzerllm_backend_transformers import loading

    monkeypatch.setattr(loading, "_free_memory", lambda device: (1000, "in main memory"))
    with pytest.raises(ModelLoadError, match=r"needs about .* MiB as float32"):
        Loaded(folder)


def test_without_diffusers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if "transformers.diffusion" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(NotInstalledError, match=r"byzerllm-backend-transformers\[diffusion\]"):
        Loaded(folder)


# The client.


@pytest.fixture
def llm(folder: Path) -> Iterator[ByzerLLM]:
    llm = ByzerLLM(runtime="local")
    llm.setup_gpus_per_worker(0).setup_num_workers(1)
    llm.deploy(
        model_path=str(folder),
        pretrained_model_type="custom/stable_diffusion",
        udf_name="sd_chat",
        infer_params={"backend.threads": 1},
    )
    yield llm
    llm.undeploy("sd_chat", force=True)


def test_client(llm: ByzerLLM) -> None:
    conversation = [{"role": "user", "content": "画一只猫"}]
    small = {f"generation.{name}": value for name, value in SMALL.items()}
    (answer,) = llm.chat_oai(
        conversation, model="sd_chat", llm_config={**small, "gen.batch_size": 3, "gen.seed": 8}
    )
    assert [picture["seed"] for picture in json.loads(answer.output)] == [8, 9, 10]
    streamed = list(
        llm.stream_chat_oai(
            conversation, model="sd_chat", llm_config={**small, "batch_size": 3, "seed": 8}
        )
    )
    text, metadata = streamed[-1]
    assert text == answer.output
    assert metadata["reasoning_content"].endswith("step 4 of 4\n")
    (form,) = llm.chat_oai(
        [
            {
                "role": "user",
                "content": json.dumps(
                    {"input": "画一只猫", "size": "64x64", "sampling_steps": 4, "seed": 8}
                ),
            }
        ],
        model="sd_chat",
    )
    assert np.abs(pixels(form.output) - pixels(json.loads(text)[0]["img64"])).max() <= 1
    with pytest.raises(ParameterError, match="did you mean 'sampler_name'"):
        llm.chat_oai(conversation, model="sd_chat", llm_config={"gen.sampler": "ddim"})
    assert llm.get_meta("sd_chat")["task"] == "image"


def test_requests_of_several_threads(llm: ByzerLLM) -> None:
    answers: dict[int, str] = {}

    def ask(seed: int) -> None:
        config = {**SMALL, "seed": seed}
        (answer,) = llm.chat_oai("a cat", model="sd_chat", llm_config=config)
        answers[seed] = answer.output

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [json.loads(answers[seed])[0]["seed"] for seed in range(4)] == [0, 1, 2, 3]
    assert len(set(answers.values())) == 4
