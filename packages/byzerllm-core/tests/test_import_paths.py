"""The import paths of earlier releases."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import byzerllm
from byzerllm.errors import NotInstalledError

without_retrieval = pytest.mark.skipif(
    importlib.util.find_spec("byzerllm_retrieval") is not None,
    reason="byzerllm-retrieval is installed",
)


def test_they_are_the_same_objects() -> None:
    import byzerllm.utils.client as client
    import byzerllm.utils.client.types as types

    for name in ("ByzerLLM", "InferBackend", "LLMHistoryItem", "LLMRequest", "LLMResponse"):
        assert getattr(client, name) is getattr(byzerllm, name)
    for name in types.__all__:
        assert getattr(types, name) is getattr(client, name)


@without_retrieval
def test_retrieval_says_what_to_install() -> None:
    from byzerllm.apps.llama_index import get_service_context, get_storage_context
    from byzerllm.utils.retrieval import ByzerRetrieval

    for call in (ByzerRetrieval, get_service_context, get_storage_context):
        with pytest.raises(NotInstalledError, match=r"pip install 'byzerllm-core\[retrieval\]'"):
            call()


def test_only_what_exists_can_be_imported() -> None:
    import byzerllm.utils.retrieval

    with pytest.raises(AttributeError, match="no attribute 'ByzerRetriever'"):
        byzerllm.utils.retrieval.ByzerRetriever  # noqa: B018


def test_the_import_is_light() -> None:
    code = (
        "import sys\n"
        "from byzerllm.utils.retrieval import ByzerRetrieval\n"
        "from byzerllm.apps.llama_index import get_service_context, get_storage_context\n"
        "heavy = {'ray', 'torch', 'numpy', 'pydantic', 'lancedb', 'llama_index'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_with_the_package_it_is_its_class(tmp_path: Path) -> None:
    package = tmp_path / "byzerllm_retrieval"
    package.mkdir()
    (package / "__init__.py").write_text("class ByzerRetrieval: pass\n")
    (package / "llama_index.py").write_text(
        "def get_service_context(llm): return ('service', llm)\n"
        "def get_storage_context(llm, retrieval, **names): return ('storage', llm, names)\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from byzerllm.apps.llama_index import get_service_context, get_storage_context\n"
        "from byzerllm.utils.retrieval import ByzerRetrieval\n"
        "import byzerllm_retrieval\n"
        "assert ByzerRetrieval is byzerllm_retrieval.ByzerRetrieval\n"
        "assert get_service_context(1) == ('service', 1)\n"
        "assert get_storage_context(1, 2, namespace='n') == ('storage', 1, {'namespace': 'n'})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
