"""The server does what its OpenAPI document says, whatever it is sent.

`nox -s soak` (BYZERLLM_SOAK=1) sends 20,000 generated requests, the tests a twentieth of it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode, checks

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
SOAK = os.environ.get("BYZERLLM_SOAK") == "1"
CASES = 20_000 if SOAK else 1_000
MODELS = "version: 1\nmodels:\n  echo: {infer_backend: echo}\n"
KEY = "sk-schema-0123456789"
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def served(serving: Callable[..., Any]) -> Any:
    return serving("--api_key", KEY, config=MODELS)


def _aimed(document: dict[str, Any]) -> dict[str, Any]:
    """Requests name a model that exists and no parameters of their own, and chats say something:
    next to none would be answered otherwise."""
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        if "model" in schema.get("required", ()) and fields["model"].get("minLength"):
            fields["model"] = {"enum": ["echo"]}
            schema["additionalProperties"] = False
            if "messages" in fields:
                fields["messages"] = {"enum": [[{"role": "user", "content": "one two"}]]}
    return document


def _operations(url: str, mode: GenerationMode) -> Iterator[Any]:
    document = httpx.get(f"{url}/openapi.json").json()
    if mode is GenerationMode.POSITIVE:
        document = _aimed(document)
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        yield result.ok()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_generated_requests(served: Any, mode: GenerationMode) -> None:
    operations = list(_operations(served.url, mode))
    taking = [operation for operation in operations if operation.body]
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {KEY}"
        for operation in operations:
            if mode is GenerationMode.NEGATIVE and operation not in taking:
                continue
            # What takes no body has next to nothing to vary.
            count = CASES // 2 // len(taking) if operation in taking else 10
            _send(operation, mode, count, served.url, session, wrong, seen)
    assert not wrong, f"{len(wrong)}:\n" + "\n\n".join(wrong[:20])
    print(dict(sorted(seen.items())))
    assert seen.total() >= CASES // 2 * 0.8
    # Right requests are mostly answered, wrong ones refused: both were really made.
    wanted = "2" if mode is GenerationMode.POSITIVE else "4"
    assert sum(count for name, count in seen.items() if name.endswith(f" {wanted}xx")) > CASES // 10
    assert "Traceback" not in served.output
    assert KEY not in served.output


def _send(
    operation: Any,
    mode: GenerationMode,
    count: int,
    url: str,
    session: requests.Session,
    wrong: list[str],
    seen: Counter[str],
) -> None:
    @seed(7)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call(base_url=url, session=session, timeout=30)
        seen[f"{operation.label} {response.status_code // 100}xx"] += 1
        try:
            case.validate_response(response, checks=CHECKS)
        except (Exception, BaseExceptionGroup) as error:
            body = json.dumps(case.body, default=repr)[:500]
            wrong.append(f"{operation.label} {body}\n{response.text[:300]}\n{str(error)[:900]}")

    with warnings.catch_warnings():
        # Of hypothesis, about strategies that schemathesis makes.
        warnings.simplefilter("ignore")
        send()
