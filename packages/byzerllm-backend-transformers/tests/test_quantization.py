"""int8 and int4 by bitsandbytes, by the spelling of old and the right one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch

from byzerllm import ByzerLLM
from byzerllm.errors import ModelLoadError, NotInstalledError, ParameterError
from byzerllm.testing import Loaded
from byzerllm.utils.client import InferBackend
from byzerllm_backend_transformers.chat.model import CausalModel
from hf_models import causal
from hf_models.causal import loading
from hf_models.smollm2 import smollm2_folder

LINEAR = {None: torch.nn.Linear, 8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal.save(tmp_path_factory.mktemp("llama"))


def logits(model: CausalModel) -> torch.Tensor:
    ids = model.tokenizer("the quick brown fox jumps", return_tensors="pt")
    with torch.inference_mode():
        return model.model(**ids).logits.float()[0, -1]


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        ({}, None),
        ({"quatization": "4"}, 4),
        ({"quatization": "8"}, 8),
        ({"quatization": "true"}, 4),
        ({"quatization": "false"}, None),
        ({"quantization": 8}, 8),
        ({"quantization": True}, 4),
        ({"quantization": False}, None),
        ({"quantization": "int4"}, 4),
        ({"backend.quatization": 4}, 4),
        ({"backend.quantization": "8"}, 8),
    ],
)
def test_spellings(given: dict[str, Any], bits: int | None, folder: Path) -> None:
    model = CausalModel.load(loading(folder, **given))
    layer = model.model.model.layers[0].self_attn.q_proj
    assert type(layer) is LINEAR[bits]


def test_both_spellings_at_once_are_refused(folder: Path) -> None:
    with pytest.raises(ParameterError, match="given twice"):
        loading(folder, quatization=4, quantization=8)


def test_fewer_bits_take_less_and_say_nearly_the_same(folder: Path) -> None:
    models = {bits: CausalModel.load(loading(folder, quantization=bits)) for bits in (None, 8, 4)}
    sizes = {bits: model.model.get_memory_footprint() for bits, model in models.items()}
    assert sizes[4] < sizes[8] < sizes[None]
    full = logits(models[None])
    distance = {bits: float((logits(models[bits]) - full).abs().mean()) for bits in (8, 4)}
    spread = float(full.std())
    assert 0 < distance[8] < 0.05 * spread
    assert distance[8] < distance[4] < spread


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_is_merged_into_quantized_weights(
    bits: int, folder: Path, tmp_path: Path
) -> None:
    adapter = causal.save_adapter(tmp_path, folder)
    wanted = logits(CausalModel.load(loading(folder, lora_path=str(adapter))))
    plain = logits(CausalModel.load(loading(folder, quantization=bits)))
    merged = logits(CausalModel.load(loading(folder, quantization=bits, lora_path=str(adapter))))
    assert (merged - wanted).abs().mean() < 0.5 * (plain - wanted).abs().mean()


def test_example_of_earlier_releases(folder: Path) -> None:
    llm = ByzerLLM(runtime="local")
    llm.setup_gpus_per_worker(0).setup_num_workers(1).setup_infer_backend(InferBackend.Transformers)
    llm.deploy(
        model_path=str(folder),
        pretrained_model_type="custom/llama2",
        udf_name="small_chat",
        infer_params={"quatization": "4"},
    )
    try:
        v = llm.chat_oai(
            model="small_chat",
            conversations=[{"role": "user", "content": "hello"}],
            llm_config={"max_length": 8, "temperature": 0},
        )
        assert v[0].metadata.generated_tokens_count == 8
    finally:
        llm.undeploy("small_chat", force=True)


@pytest.mark.model
@pytest.mark.parametrize(("bits", "most"), [(8, 0.45), (4, 0.35)])
def test_a_real_model_answers_rightly(bits: int, most: float, load: Callable[..., Loaded]) -> None:
    """135 million weights of 4 bytes are 513 MiB; the 108 MiB of its embeddings stay."""
    model = load(smollm2_folder(), quantization=bits, max_model_len=512, concurrency=2)
    answer = model.ask("What is the capital city of France? Answer in one sentence.", max_tokens=12)
    assert "Paris" in answer.text
    assert model.backend.task._model.model.get_memory_footprint() < most * 513 * 2**20


# Where it cannot be.


def test_the_extra_is_named_when_it_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(NotInstalledError, match=r"byzerllm-backend-transformers\[quantization\]"):
        CausalModel.load(loading(folder, quantization=4))


def test_a_platform_that_cannot_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build of bitsandbytes for another platform fails when it is imported."""
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcudart.so: wrong ELF class')\n")
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelLoadError, match="cannot be loaded on this platform: libcudart"):
        CausalModel.load(loading(folder, quantization=8))


def test_weights_that_are_quantized_already(folder: Path, tmp_path: Path) -> None:
    """What bitsandbytes saved loads as it is, and not a second time in other bits."""
    model = CausalModel.load(loading(folder, quantization=8))
    model.model.save_pretrained(tmp_path)
    causal.save_tokenizer(tmp_path)
    again = CausalModel.load(loading(tmp_path))
    assert type(again.model.model.layers[0].self_attn.q_proj) is LINEAR[8]
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(ModelLoadError, match="quantized already"):
        CausalModel.load(loading(tmp_path, quantization=4))
