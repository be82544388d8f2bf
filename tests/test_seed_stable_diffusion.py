"""The example of Stable Diffusion that users of earlier releases know.

Names, keys and the order of calls are the example's; the model is a tiny random one, and no GPU is
asked for.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from PIL import Image

from byzerllm.utils.client import ByzerLLM, InferBackend
from byzerllm_backend_transformers.diffusion.parameters import PictureParameters, UpscalerMode
from byzerllm_backend_transformers.diffusion.schedulers import SAMPLERS
from hf_models.diffusion import stable_diffusion

# diffusers hands tensors to NumPy in ways that NumPy 2 wants written otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture(scope="module")
def model_location(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(stable_diffusion(tmp_path_factory.mktemp("models") / "stable-diffusion-v1-5"))


@pytest.fixture
def llm(model_location: str) -> Iterator[ByzerLLM]:
    llm = ByzerLLM(runtime="local")
    llm.setup_gpus_per_worker(0).setup_num_workers(1).setup_infer_backend(InferBackend.Transformers)
    llm.deploy(
        model_path=model_location,
        pretrained_model_type="custom/stable_diffusion",
        udf_name="sd_chat",
        # Several threads beside other work of the machine wait for each other more than they help.
        infer_params={"backend.threads": 1},
    )
    yield llm
    llm.undeploy("sd_chat", force=True)


def test_three_cats(llm: ByzerLLM) -> None:
    t = llm.chat_oai(
        conversations=[{"role": "user", "content": "画一只猫"}],
        model="sd_chat",
        llm_config={"gen.batch_size": 3},
    )
    cats = json.loads(t[0].output)
    assert len(cats) == 3
    for res in cats:
        image = Image.open(io.BytesIO(base64.b64decode(res["img64"])))
        assert (image.format, image.size) == ("PNG", (768, 768))
    assert len({res["img64"] for res in cats}) == 3
    assert len({res["seed"] for res in cats}) == 3


def test_every_parameter_of_the_table(llm: ByzerLLM, tmp_path: Path) -> None:
    start = io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(start, "PNG")
    config = {
        "generation.negative_prompt": "a dog",
        "generation.sampler_name": "dpm++_2m_karras",
        "generation.sampling_steps": 4,
        "generation.batch_size": 2,
        "generation.batch_count": 2,
        "generation.cfg_scale": 5.5,
        "generation.seed": 11,
        "generation.width": 64,
        "generation.height": 128,
        "generation.enable_hires": True,
        "generation.upscaler_mode": "bicubic-antialiased",
        "generation.scale_slider": 2,
        "generation.enable_multidiff": True,
        "generation.views_batch_size": 2,
        "generation.window_size": 16,
        "generation.stride": 8,
        "generation.init_image": base64.b64encode(start.getvalue()).decode(),
        "generation.strength": 0.5,
    }
    (answer,) = llm.chat_oai(
        conversations=[{"role": "user", "content": "a cat"}], model="sd_chat", llm_config=config
    )
    pictures = json.loads(answer.output)
    assert [picture["seed"] for picture in pictures] == [11, 12, 13, 14]
    for picture in pictures:
        for key, value in config.items():
            name = key.removeprefix("generation.")
            if name not in ("seed", "init_image", "width", "height"):
                assert picture[name] == value, name
        image = Image.open(io.BytesIO(base64.b64decode(picture["img64"])))
        assert image.size == (picture["width"], picture["height"]) == (128, 256)


def test_the_table_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "stable-diffusion.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, re.MULTILINE))
    assert rows.pop("seed") == "-1"
    defaults = msgspec.structs.asdict(PictureParameters())
    shown = {
        name: value if isinstance(value, str) and value else json.dumps(value)
        for name, value in defaults.items()
    }
    assert rows == shown
    assert all(f"`{name}`" in text for name in SAMPLERS)
    assert all(f"`{mode}`" in text for mode in get_args(UpscalerMode))
