"""Loading of causal models: adapters, GGUF, memory, numbers, threads, progress and giving up."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from byzerllm.errors import ByzerLLMError, ModelLoadError, ModelSourceError
from byzerllm_backend_transformers import loading as loading_module
from byzerllm_backend_transformers.backend import TransformersBackend
from byzerllm_backend_transformers.chat.model import CausalModel
from byzerllm_backend_transformers.folder import ModelFolder, tensors
from byzerllm_backend_transformers.loading import (
    device_of,
    dtype_of,
    load,
    model_arguments,
    weight_bytes,
)
from hf_models import causal
from hf_models.causal import loading

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return causal.save_adapter(base.parent / "adapter", base)


def logits(model: CausalModel) -> torch.Tensor:
    ids = model.tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        return model.model(**ids).logits.float()


def loaded(path: Path, **infer_params: Any) -> torch.Tensor:
    return logits(CausalModel.load(loading(path, **infer_params)))


# Adapters.


def test_an_adapter_is_merged(base: Path, adapter: Path) -> None:
    import peft

    plain = CausalModel.load(loading(base))
    before = logits(plain)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        adapted = peft.PeftModel.from_pretrained(plain.model, str(adapter))
    with torch.inference_mode():
        ids = plain.tokenizer(PROMPT, return_tensors="pt")
        wanted = adapted(**ids).logits.float()
    merged = CausalModel.load(loading(base, lora_path=str(adapter)))
    assert type(merged.model).__name__ == "LlamaForCausalLM"
    assert not [name for name, _ in merged.model.named_parameters() if "lora" in name]
    assert torch.allclose(logits(merged), wanted, atol=1e-4)
    assert (before - wanted).abs().max() > 0.1


def test_adapters_are_merged_in_their_order(base: Path, adapter: Path, tmp_path: Path) -> None:
    undo = causal.save_adapter(tmp_path / "undo", base, sign=-1)
    both = loaded(base, lora_path=f"{adapter}, {undo}")
    assert torch.allclose(both, loaded(base), atol=1e-3)
    assert not torch.allclose(loaded(base, lora_paths=[str(undo)]), loaded(base), atol=0.1)


def test_an_adapter_s_folder_finds_its_base(base: Path, adapter: Path) -> None:
    folder = ModelFolder.read(adapter)
    assert folder.path == base
    assert folder.adapters == (adapter,)
    assert torch.equal(loaded(adapter), loaded(base, lora_path=str(adapter)))


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_adapter_whose_base_is_elsewhere(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    change(folder, base_model_name_or_path="someone/base-7b")
    with pytest.raises(ModelSourceError, match=r"base someone/base-7b is no folder.*lora_path="):
        ModelFolder.read(folder)


def bad_adapters() -> dict[str, tuple[Any, str]]:
    return {
        "of another model": (
            lambda folder, base: causal.save_adapter(folder, base, hidden_size=64),
            "does not fit the model",
        ),
        "of other layers": (
            lambda folder, base: causal.save_adapter(
                folder, base, name="gpt_neox", target_modules=["query_key_value"]
            ),
            "does not fit the model",
        ),
        "no adapter": (lambda folder, base: folder.mkdir(), "has no adapter_config.json"),
        "without weights": (
            lambda folder, base: (
                causal.save_adapter(folder, base) / "adapter_model.safetensors"
            ).unlink(),
            "has no weights",
        ),
        "of another type": (
            lambda folder, base: change(causal.save_adapter(folder, base), peft_type="IA3"),
            "type 'IA3', not LORA",
        ),
        "with cut off weights": (
            lambda folder, base: cut(causal.save_adapter(folder, base)),
            "is cut off",
        ),
    }


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


@pytest.mark.parametrize("name", bad_adapters())
def test_bad_adapter_is_one_clear_error(name: str, base: Path, tmp_path: Path) -> None:
    make, message = bad_adapters()[name]
    make(tmp_path / "bad", base)
    with pytest.raises(ModelSourceError, match=message) as caught:
        CausalModel.load(loading(base, lora_path=str(tmp_path / "bad")))
    assert str(tmp_path / "bad") in str(caught.value)
    assert len(str(caught.value)) < 900


def test_adapters_are_looked_at_before_weights_are_read(base: Path) -> None:
    phases: list[str] = []
    with pytest.raises(ModelSourceError, match="lora_path"):
        CausalModel.load(loading(base, report=phases.append, lora_path="/nowhere"))
    assert "loading weights" not in phases


# GGUF.


@pytest.mark.model
def test_a_gguf_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own weights, as numbers that transformers computes with; reading all of it is slow, so
    it is the arguments and the reader that are tested here, and an answer in the benchmarks."""
    from hf_models.smollm2 import smollm2_gguf

    given = loading(smollm2_gguf())
    assert given.folder.task(given.family) == "chat"
    assert weight_bytes(given.folder, torch.float32, None) // 2**20 == 513
    arguments = model_arguments(given)
    assert arguments["gguf_file"] == smollm2_gguf().name
    assert arguments["quantization_config"].dequantize
    with pytest.raises(ModelLoadError, match="llama_cpp"):
        model_arguments(loading(smollm2_gguf(), quantization=4))


# Memory, numbers, devices, threads.


def test_memory_is_told_before_weights_are_read(base: Path) -> None:
    phases: list[str] = []
    CausalModel.load(loading(base, report=phases.append))
    told = next(n for n, phase in enumerate(phases) if phase.startswith("needs about "))
    assert told < phases.index("loading weights") < phases.index("loading weights 100 %")


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float32", None), ("bfloat16", None), ("float32", 8), ("float32", 4)]
)
def test_weights_take_what_is_told(base: Path, dtype: str, bits: int | None) -> None:
    given = loading(base, dtype=dtype, quantization=bits)
    told = weight_bytes(given.folder, getattr(torch, dtype), bits)
    taken = CausalModel.load(given).model.get_memory_footprint()
    # Each quantized matrix has its scales beside it.
    assert taken == pytest.approx(told, rel=0.01 if bits is None else 0.1)


def test_what_cannot_fit_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "_free_memory", lambda device: (100_000, "on the moon"))
    with pytest.raises(ModelLoadError, match=r"needs about 0 MiB as float32, and 0 MiB are free"):
        CausalModel.load(loading(base))
    CausalModel.load(loading(base, dtype="bfloat16"))


def test_sharded_and_pickled_weights_are_counted(base: Path, tmp_path: Path) -> None:
    whole = weight_bytes(ModelFolder.read(base), torch.float32, None)
    causal.build("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weight_bytes(ModelFolder.read(tmp_path), torch.float32, None) == whole


def test_only_files_that_are_read_are_counted(base: Path, tmp_path: Path) -> None:
    """Checkpoints of a training, and weights in the format of others, lie in many folders."""
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    shutil.copytree(base, folder / "checkpoint-500")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "gone.bin"}}')
    assert ModelFolder.read(folder).weight_files == [folder / "model.safetensors"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match=r"lacks 1 of its 1 weight files: gone\.bin"):
        ModelFolder.read(folder)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(ModelSourceError, match="has no weight_map"):
        ModelFolder.read(folder)


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("4000", "1000", 3000), ("max", "1000", None), ("10", "20", 0)]
)
def test_a_container_may_have_less_memory(
    limit: str, used: str, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (tmp_path / "memory.max", tmp_path / "memory.current")
    files[0].write_text(f"{limit}\n")
    files[1].write_text(f"{used}\n")
    monkeypatch.setattr(loading_module, "_CONTROL_GROUPS", [files])
    free, place = loading_module._free_memory(torch.device("cpu"))
    assert (place == "in the container's memory") is (left is not None)
    assert left is None or free == left


def test_headers_are_read_without_weights(base: Path) -> None:
    found = {name: (kind, shape) for name, kind, shape, _ in tensors(base / "model.safetensors")}
    assert found["model.embed_tokens.weight"] == ("F32", [320, 32])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("auto", torch.float32),
        ("fp16", torch.float16),
        ("torch.bfloat16", torch.bfloat16),
        ("half", torch.float16),
    ],
)
def test_numbers_are_those_asked_for(base: Path, given: str, wanted: torch.dtype) -> None:
    model = CausalModel.load(loading(base, torch_dtype=given))
    assert model.model.dtype == wanted


def test_numbers_of_a_gpu_are_the_folder_s(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "half"))
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    assert dtype_of(loading(folder), torch.device("cuda")) == torch.bfloat16
    assert dtype_of(loading(folder), torch.device("cpu")) == torch.float32


def test_devices(base: Path) -> None:
    assert device_of(loading(base)) == torch.device("cpu")
    assert device_of(loading(base, device="cpu")) == torch.device("cpu")
    assert model_arguments(loading(base, device_map="auto"))["device_map"] == "auto"
    mapped = CausalModel.load(loading(base, device_map="auto"))
    assert torch.equal(logits(mapped), loaded(base))
    assert mapped.device.type == torch.empty(0).device.type


def test_a_worker_has_its_threads(base: Path) -> None:
    before = torch.get_num_threads()
    try:
        model_arguments(loading(base, threads=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Length and ends.


def test_length_is_that_of_the_folder_or_less(base: Path, tmp_path: Path) -> None:
    assert CausalModel.load(loading(base)).max_model_len == causal.LENGTH
    assert CausalModel.load(loading(base, max_model_len=100)).max_model_len == 100
    for name in ("gpt2", "mamba"):
        folder = causal.save(tmp_path / name, name)
        wanted = causal.LENGTH if name == "gpt2" else 131_072
        assert CausalModel.load(loading(folder)).max_model_len == wanted


def test_all_end_tokens_end(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, 7]}))
    model = CausalModel.load(loading(folder))
    assert model.end_tokens == {1, 2, 7}
    assert model.defaults.eos_token_id == [2, 7]


# Giving up.


def test_loading_is_given_up(base: Path) -> None:
    phases: list[str] = []
    given = loading(base, report=phases.append)
    given.given_up.set()
    with pytest.raises(ModelLoadError, match="given up"):
        load(given, lambda *_, **__: pytest.fail("weights were read"))
    assert phases == []


def test_a_deploy_that_is_cancelled_ends_loading(base: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def report(phase: str) -> None:
        if phase.startswith("needs about"):
            begun.set()
            ended.wait(10)

    async def cancel() -> None:
        context = loading(base, report=report).context
        task = asyncio.create_task(TransformersBackend.create(context))
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended.set()

    asyncio.run(cancel())


def test_errors_of_loading_are_ours(base: Path) -> None:
    def fail(error: Exception) -> Any:
        def raise_it(*_: Any, **__: Any) -> None:
            raise error

        return raise_it

    for error, kind in [
        (OSError("disk"), ModelSourceError),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), ModelLoadError),
        (MemoryError(), ModelLoadError),
        (RuntimeError("other"), ModelLoadError),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), ByzerLLMError),
    ]:
        with pytest.raises(kind, match=r"llama|timm"):
            load(loading(base), fail(error))
