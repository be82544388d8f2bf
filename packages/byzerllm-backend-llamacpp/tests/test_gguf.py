"""Model paths that hold no model, or a damaged one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byzerllm.errors import ModelSourceError, TemplateError
from byzerllm_backend_llamacpp.gguf import check_gguf, find_gguf

pytestmark = pytest.mark.model

MEBIBYTE = 2**20


def head(source: Path, target: Path, size: int) -> Path:
    """The first `size` bytes of a file as a file."""
    with source.open("rb") as stream:
        target.write_bytes(stream.read(size))
    return target


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="does not exist"):
        find_gguf(tmp_path / "none.gguf")
    with pytest.raises(ModelSourceError, match="needs a model_path"):
        find_gguf(None)


def test_folder_without_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelSourceError, match=r"no \.gguf file"):
        find_gguf(tmp_path)


def test_folder_with_one_gguf(tmp_path: Path) -> None:
    (tmp_path / "mmproj-f16.gguf").touch()
    (tmp_path / "only.GGUF").touch()
    assert find_gguf(tmp_path).name == "only.GGUF"


def test_folder_with_several(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelSourceError, match=r"a\.gguf, b\.gguf"):
        find_gguf(tmp_path)


def test_parts_of_a_split_model(tmp_path: Path, model_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    shutil.copy(model_path, first)
    with pytest.raises(ModelSourceError, match=r"missing.*m-00002-of-00002\.gguf"):
        check_gguf(find_gguf(tmp_path))
    head(model_path, second, 10 * MEBIBYTE)
    assert find_gguf(tmp_path) == first
    with pytest.raises(ModelSourceError, match=r"first part, m-00001-of-00002\.gguf"):
        find_gguf(second)
    with pytest.raises(ModelSourceError, match=r"m-00002-of-00002\.gguf' is truncated"):
        check_gguf(first)


def test_no_gguf(tmp_path: Path) -> None:
    for name, data in (("zip.gguf", b"PK\x03\x04"), ("empty.gguf", b"")):
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(ModelSourceError, match="is no GGUF file") as got:
            check_gguf(file)
        assert repr(data) in got.value.message


@pytest.mark.parametrize("size", [4, 20, 200_000])
def test_cut_off_in_the_header(tmp_path: Path, model_path: Path, size: int) -> None:
    with pytest.raises(ModelSourceError, match=f"damaged or cut off .{size:,} bytes"):
        check_gguf(head(model_path, tmp_path / "short.gguf", size))


def test_a_header_of_nonsense(tmp_path: Path) -> None:
    file = tmp_path / "nonsense.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    with pytest.raises(ModelSourceError, match="damaged"):
        check_gguf(file)


def test_cut_off_in_the_tensors(tmp_path: Path, model_path: Path, load: Callable[..., Any]) -> None:
    file = head(model_path, tmp_path / "half.gguf", 40 * MEBIBYTE)
    whole, half = f"{model_path.stat().st_size:,}", f"{40 * MEBIBYTE:,}"
    with pytest.raises(ModelSourceError, match=re.escape(whole)) as got:
        load(path=file)
    assert half in got.value.message
    assert "truncated" in got.value.message


def test_what_llama_cpp_refuses_is_explained(
    tmp_path: Path, model_path: Path, load: Callable[..., Any]
) -> None:
    file = tmp_path / "other.gguf"
    data = model_path.read_bytes()
    old, new = b"general.architecture", b"general.brchitecture"
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))
    with pytest.raises(ModelSourceError, match=r"cannot load .*architecture"):
        load(path=file)


def test_a_model_without_a_chat_template(
    tmp_path: Path, model_path: Path, load: Callable[..., Any]
) -> None:
    file = tmp_path / "bare.gguf"
    file.write_bytes(
        model_path.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templXte")
    )
    bare = load(path=file, n_ctx=256, concurrency=1)
    assert not bare.run(bare.backend.meta()).support_chat_template
    with pytest.raises(TemplateError, match="setup_template"):
        bare.ask("hello")
    assert bare.ask(prompt="The capital of France is", max_tokens=4).text


def test_an_adapter_that_is_none(model_path: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(ModelSourceError, match="does not exist"):
        load(lora_path="/nowhere/adapter.gguf")
    with pytest.raises(ModelSourceError, match="LoRA adapter"):
        load(lora_path=str(model_path))
