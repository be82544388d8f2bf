"""Folders that are no model, or not whole, or not of the kind asked for: one clear error each."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byzerllm import ByzerLLM
from byzerllm.errors import (
    ByzerLLMError,
    ModelLoadError,
    ModelSourceError,
    NotInstalledError,
    ParameterError,
    TemplateError,
)
from hf_models import causal
from hf_models.smollm2 import smollm2_gguf

Break = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal.save(tmp_path_factory.mktemp("llama"))


def edit(name: str, **values: Any) -> Break:
    """Changes values of a JSON file; None takes one out."""

    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text()) | values
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def remove(*names: str) -> Break:
    def take_out(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return take_out


def write(name: str, data: bytes | str) -> Break:
    content = data.encode() if isinstance(data, str) else data
    return lambda folder: (folder / name).write_bytes(content)


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lose_a_shard(folder: Path) -> None:
    import transformers

    (folder / "model.safetensors").unlink()
    causal.build("llama").save_pretrained(folder, max_shard_size="40KB")
    assert transformers.utils.SAFE_WEIGHTS_INDEX_NAME in {file.name for file in folder.iterdir()}
    sorted(folder.glob("model-0*.safetensors"))[1].unlink()


def promise(tensors: int, values: int) -> Break:
    """Weights that are only promised: a sparse file of the promised size."""

    def make(folder: Path) -> None:
        size = 4 * values
        header = json.dumps(
            {
                f"model.layers.{n}.weight": {
                    "dtype": "F32",
                    "shape": [values],
                    "data_offsets": [n * size, (n + 1) * size],
                }
                for n in range(tensors)
            }
        ).encode()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + tensors * size)

    return make


def lose_a_tensor(folder: Path) -> None:
    import safetensors.torch

    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})


def encoder_decoder(folder: Path) -> None:
    edit("config.json", architectures=["BartForCausalLM"], is_encoder_decoder=True)(folder)


FOLDERS: dict[str, tuple[Break, str, type[ByzerLLMError], str]] = {
    "no config": (
        remove("config.json"),
        "custom/auto",
        ModelSourceError,
        "neither config.json nor model_index.json",
    ),
    "only a tokenizer": (
        remove("config.json", "generation_config.json", "model.safetensors"),
        "custom/auto",
        ModelSourceError,
        "neither config.json nor model_index.json",
    ),
    "pointer of Git LFS for pickled weights": (
        lambda folder: (
            remove("model.safetensors")(folder),
            write("pytorch_model.bin", "version https://git-lfs.github.com/spec/v1\n")(folder),
        ),
        "custom/auto",
        ModelSourceError,
        "pointer of Git LFS.*git lfs pull",
    ),
    "pickled weights that are none": (
        lambda folder: (
            remove("model.safetensors")(folder),
            write("pytorch_model.bin", b"PK\x03\x04" + bytes(100))(folder),
        ),
        "custom/auto",
        ByzerLLMError,
        "model cannot be loaded",
    ),
    "broken config": (
        write("config.json", '{"model_type": "llama",'),
        "custom/auto",
        ModelSourceError,
        r"config\.json cannot be read: Expecting property name",
    ),
    "config is a list": (
        write("config.json", "[]"),
        "custom/auto",
        ModelSourceError,
        "holds no JSON object",
    ),
    "config is no text": (
        write("config.json", b"\xff\xfe\x00"),
        "custom/auto",
        ModelSourceError,
        r"config\.json cannot be read",
    ),
    "config of no known model": (
        edit("config.json", model_type="unheard_of"),
        "custom/auto",
        ModelSourceError,
        "unheard_of",
    ),
    "config without a type": (
        edit("config.json", model_type=None, architectures=None),
        "custom/llama2",
        ModelLoadError,
        "no causal language model",
    ),
    "config with a text for a number": (
        edit("config.json", hidden_size="wide"),
        "custom/auto",
        ModelLoadError,
        "cannot be loaded: .*hidden_size",
    ),
    "no weights": (
        remove("model.safetensors"),
        "custom/auto",
        ModelSourceError,
        "has a config but no weights",
    ),
    "weights cut off": (cut_off, "custom/auto", ModelSourceError, "is cut off: it has .* bytes"),
    "weights are a page of a web server": (
        write("model.safetensors", "<!DOCTYPE html><html>404</html>"),
        "custom/auto",
        ModelSourceError,
        "is no safetensors file",
    ),
    "weights are empty": (
        write("model.safetensors", b""),
        "custom/auto",
        ModelSourceError,
        "safetensors",
    ),
    "pointer of Git LFS": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "custom/auto",
        ModelSourceError,
        "pointer of Git LFS.*git lfs pull",
    ),
    "shard missing": (lose_a_shard, "custom/auto", ModelSourceError, r"lacks 1 of its \d+ weight"),
    "tensor missing": (
        lose_a_tensor,
        "custom/auto",
        ModelSourceError,
        r"lack 1 tensors .*layers\.1\.mlp\.up_proj\.weight",
    ),
    "weights of another size": (
        edit("config.json", intermediate_size=48),
        "custom/auto",
        ModelLoadError,
        "cannot be loaded",
    ),
    "more weights than memory": (
        promise(64, 2**32),
        "custom/auto",
        ModelLoadError,
        r"needs about 1177\.6 GiB as float32, and [\d.]+ GiB are free in main memory; .*quantiz",
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        "custom/auto",
        ModelSourceError,
        "has no tokenizer",
    ),
    "broken tokenizer": (
        write("tokenizer.json", '{"version": "1.0"}'),
        "custom/auto",
        ModelSourceError,
        "the tokenizer of .* cannot be loaded",
    ),
    "template that is none": (
        write("chat_template.jinja", "{% for message in %}"),
        "custom/auto",
        TemplateError,
        "the chat template cannot be compiled",
    ),
    "encoder-decoder": (
        encoder_decoder,
        "custom/auto",
        ModelLoadError,
        "an encoder-decoder model .*custom/auto",
    ),
    "a classifier as a chat": (
        edit("config.json", architectures=["LlamaForSequenceClassification"]),
        "custom/llama2",
        ModelLoadError,
        "LlamaForSequenceClassification, no causal language model",
    ),
    "an encoder as a chat": (
        edit("config.json", architectures=["BertModel"], model_type="bert"),
        "falcon",
        ModelLoadError,
        "BertModel, no causal language model",
    ),
    "a chat as a reranker": (lambda folder: None, "custom/bge_rerank", ModelLoadError, "/model"),
    "a chat as whisper": (lambda folder: None, "whisper", ModelLoadError, "/model"),
    "a chat as bark": (lambda folder: None, "bark", ModelLoadError, "/model"),
    "a chat that sees": (lambda folder: None, "custom/qwen_vl_chat", ModelLoadError, "/model"),
    "a chat that draws": (lambda folder: None, "custom/stable_diffusion", ByzerLLMError, "/model"),
}


def deploy(path: Path, model_type: str = "custom/auto", **infer_params: Any) -> None:
    client = ByzerLLM(runtime="local", infer_backend="transformers")
    client.deploy(str(path), model_type, udf_name="bad", infer_params=infer_params)
    client.undeploy("bad", force=True)


def check_told(error: ByzerLLMError) -> None:
    """One paragraph for a person: no traceback, none of transformers' pages."""
    text = str(error)
    assert len(text) < 900
    assert "Traceback" not in text
    assert "site-packages" not in text


@pytest.mark.parametrize("name", FOLDERS)
def test_bad_folder_is_one_clear_error(name: str, whole: Path, tmp_path: Path) -> None:
    damage, model_type, kind, message = FOLDERS[name]
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    damage(folder)
    with pytest.raises(kind, match=f"(?s){message}") as caught:
        deploy(folder, model_type)
    check_told(caught.value)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"dtype": "float8"}, ParameterError, "dtype.*'float32'"),
        ({"device": "tpu"}, ModelLoadError, "device 'tpu' cannot be used here"),
        ({"device": "cuda:99"}, ModelLoadError, "device 'cuda:99' cannot be used here"),
        ({"device_map": "evenly"}, ByzerLLMError, "device_map"),
        ({"quantization": 3}, ParameterError, "quantization"),
        ({"quatization": "5"}, ParameterError, "quatization"),
        ({"attn_implementation": "fast"}, ByzerLLMError, "attn_implementation"),
        ({"max_model_len": 4096}, ParameterError, "max_model_len.*at most 256"),
        ({"chat_template": "/nowhere/t.jinja"}, TemplateError, "neither a Jinja template nor a fi"),
        ({"chat_template": "{% if %}"}, TemplateError, "cannot be compiled"),
        ({"threads": 0}, ParameterError, "threads"),
        ({"lora_path": "/nowhere/adapter"}, ModelSourceError, "has no adapter_config.json"),
        ({"temprature": 1}, ParameterError, "temprature"),
    ],
)
def test_bad_parameter_is_one_clear_error(
    given: dict[str, Any], kind: type[ByzerLLMError], message: str, whole: Path
) -> None:
    with pytest.raises(kind, match=f"(?s){message}") as caught:
        deploy(whole, **given)
    check_told(caught.value)


def test_a_path_that_is_no_folder(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"is a file; .* takes a model's folder"):
        deploy(whole / "config.json")
    with pytest.raises(ModelSourceError, match="neither config"):
        deploy(tmp_path)
    with pytest.raises(ModelSourceError, match="no such file or folder"):
        deploy(tmp_path / "nothing")


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelSourceError, match=r"model\.gguf"):
        deploy(file)
    file.write_bytes(b"<html>")
    with pytest.raises(ModelSourceError, match=r"model\.gguf is no GGUF file"):
        deploy(file)


@pytest.mark.model
def test_a_gguf_that_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with smollm2_gguf().open("rb") as source:
        file.write_bytes(source.read(100_000))
    with pytest.raises(ByzerLLMError, match=r"model\.gguf cannot be loaded: .*is the file whole"):
        deploy(file)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NotInstalledError, match=r"byzerllm-backend-transformers\[gguf\]"):
        deploy(file)


def test_a_failed_load_leaves_no_deployment(whole: Path, tmp_path: Path) -> None:
    client = ByzerLLM(runtime="local", infer_backend="transformers")
    with pytest.raises(ModelSourceError):
        client.deploy(str(tmp_path), udf_name="bad")
    assert not client.is_model_exist("bad")
    client.deploy(str(whole), udf_name="bad")
    client.undeploy("bad")
