"""What `infer_params` take and refuse, and that the plugin imports no engine."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from byzerllm.errors import ParameterError
from byzerllm_backend_llamacpp import LLAMA_CPP, LlamaCppParameters


def parse(**given: Any) -> LlamaCppParameters:
    return LlamaCppParameters.parse(given, where="backend 'llama_cpp'")


def test_text_values_of_the_command_line() -> None:
    params = parse(
        num_gpu_layers="-1",
        n_ctx="2048",
        verbose="true",
        use_mmap="false",
        tensor_split="0.6,0.4",
        lora_path="a.gguf, b.gguf",
        lora_scale="[0.5, 1]",
        type_k="Q8_0",
        split_mode="2",
        numa="true",
        kv_unified="false",
    )
    assert params.num_gpu_layers == -1
    assert params.n_ctx == 2048
    assert params.verbose
    assert not params.use_mmap
    assert params.tensor_split == (0.6, 0.4)
    assert params.lora_path == ("a.gguf", "b.gguf")
    assert params.lora_scale == (0.5, 1.0)
    assert params.type_k == "q8_0"
    assert params.split_mode == "row"
    assert params.numa == "distribute"
    assert params.kv_unified is False


def test_both_names_of_the_gpu_layers() -> None:
    given = {"backend.n_gpu_layers": 7}
    assert LlamaCppParameters.parse(given, where="x").num_gpu_layers == 7
    assert parse(num_gpu_layers=7).num_gpu_layers == 7


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("n_ctx", -5, "greater than or equal to 0"),
        ("n_ctx", "many", "integer"),
        ("n_threads", 0, "greater than or equal to 1"),
        ("n_batch", 1, "greater than or equal to 32"),
        ("num_gpu_layers", -2, "greater than or equal to -1"),
        ("type_k", "f15", "'f16'"),
        ("pooling_type", "none", "'mean'"),
        ("verbose", "perhaps", "boolean"),
        ("lora_scale", "1,2", "one for each"),
        ("tensor_split", "a,b", "number"),
    ],
)
def test_bad_values_name_the_parameter(name: str, value: Any, says: str) -> None:
    with pytest.raises(ParameterError, match=name) as got:
        parse(**{name: value})
    assert says in got.value.message


def test_a_quantised_value_cache_needs_flash_attention() -> None:
    with pytest.raises(ParameterError, match="flash attention"):
        parse(flash_attn=False, type_v="q8_0")
    assert parse(type_v="q8_0").flash_attn is None


def test_a_slip_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ParameterError, match=r"n_ctxx.*did you mean 'n_ctx'"):
        parse(n_ctxx=1)


def test_the_plugin_imports_no_engine() -> None:
    code = (
        "import sys, byzerllm_backend_llamacpp;"
        "heavy = {'llama_cpp', 'numpy', 'ray'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_spec_is_what_the_seed_asks_for() -> None:
    assert LLAMA_CPP.default_concurrency == 10
    assert LLAMA_CPP.formats == ("gguf",)
    assert LLAMA_CPP.accepts_type("custom/auto")
    assert LLAMA_CPP.accepts_type("custom/llama2")
    assert not LLAMA_CPP.accepts_type("saas/openai")
