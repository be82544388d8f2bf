"""The files of the page and the figures that it shows, without a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

PAGE = Path(str(resources.files("byzerllm_server"))) / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
KEY = "page-key-0123456789"


def test_the_page(http: httpx.Client) -> None:
    response = http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
    assert "unsafe" not in policy
    for name in re.findall(r'(?:src|href)="([^"]+)"', response.text):
        assert http.get(f"/{name}").status_code == 200, name


@pytest.mark.parametrize(
    ("name", "media"),
    [
        ("app.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
@pytest.mark.parametrize("coding", ["gzip", "identity"])
def test_files_have_types_and_are_asked_for_once(
    http: httpx.Client, name: str, media: str, coding: str
) -> None:
    headers = {"accept-encoding": coding}
    response = http.get(f"/ui/{name}", headers=headers)
    assert response.headers["content-type"] == media
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers.get("content-encoding", "identity") == coding
    assert response.content == (PAGE / name).read_bytes()
    etag = response.headers["etag"]
    again = http.get(f"/ui/{name}", headers={**headers, "if-none-match": etag})
    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["etag"] == etag
    other = http.get(f"/ui/{name}", headers={**headers, "if-none-match": '"other"'})
    assert other.status_code == 200


def test_a_head_has_no_body(http: httpx.Client) -> None:
    response = http.head("/")
    assert response.status_code == 200
    assert response.content == b""


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2fapp.py", "%2e%2e/app.py"])
def test_nothing_else_is_served(http: httpx.Client, name: str) -> None:
    response = http.get(f"/ui/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_the_page_stands_outside_the_document(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert "/v1/chat/completions" in paths
    assert not [path for path in paths if path == "/" or path.startswith("/ui")]


def test_without_the_page(serving: Callable[..., Any]) -> None:
    with httpx.Client(base_url=serving("--no_page").url) as client:
        for path in ("/", "/ui/app.js", "/ui/models"):
            assert client.get(path).status_code == 404
        assert client.get("/v1/models").status_code == 200


# Figures.


def test_figures(http: httpx.Client) -> None:
    question = {"role": "user", "content": "one two three"}
    body = {"model": "echo", "messages": [question], "stream": True}
    for _ in range(3):
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    # The figures may be a second old.
    rows = eventually(http, lambda rows: rows["echo"]["done"] >= 3)
    echo = rows["echo"]
    assert echo["task"] == "chat"
    assert echo["state"] == "ready"
    assert echo["running"] == echo["queued"] == 0
    assert 0 < echo["ttft_p50"] < 5
    assert echo["requests_per_second"] > 0
    (worker,) = echo["workers"]
    assert worker["state"] == "ready"
    assert worker["rss"] > 2**20


def test_failures_are_seen(http: httpx.Client) -> None:
    body = {"model": "broken", "messages": [{"role": "user", "content": "one two three"}]}
    http.post("/v1/chat/completions", json=body)
    rows = eventually(http, lambda rows: rows["broken"]["errors_per_second"] > 0)
    assert rows["broken"]["failed"] >= 1


def test_tokens_per_second_of_a_running_stream(http: httpx.Client) -> None:
    body = {"model": "slow", "messages": [{"role": "user", "content": "a"}], "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        pieces = response.iter_text()
        next(pieces)
        rows = eventually(http, lambda rows: rows["slow"]["running"] == 1)
        assert rows["slow"]["concurrency"] == 1000
        # Known at once, not only when the stream has ended.
        eventually(http, lambda rows: rows["slow"]["ttft_p50"] is not None)
        for _ in pieces:
            pass
    eventually(http, lambda rows: rows["slow"]["tokens_per_second"] > 1)


def test_many_viewers_are_answered_from_one_look(http: httpx.Client) -> None:
    """All answers of a moment are the same bytes: the uptime in them was read once."""
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: http.get("/ui/models").content, range(60)))
    assert len(set(answers)) <= 4


def test_figures_need_the_key(serving: Callable[..., Any]) -> None:
    with httpx.Client(base_url=serving("--api_key", KEY).url) as client:
        assert client.get("/").status_code == 200
        assert client.get("/ui/models").status_code == 401
        headers = {"authorization": f"Bearer {KEY}"}
        assert client.get("/ui/models", headers=headers).status_code == 200


def test_served_names_are_shown(serving: Callable[..., Any]) -> None:
    options = ("--served_model_name", "gpt-x=echo", "--served_model_name", "gpt-y=echo")
    with httpx.Client(base_url=serving(*options).url) as client:
        rows = client.get("/ui/models").json()["data"]
    assert [(row["name"], row["model"]) for row in rows] == [("gpt-x", "echo"), ("gpt-y", "echo")]


def eventually(http: httpx.Client, holds: Callable[[Any], bool]) -> Any:
    """The figures by model, once they are so; they are a second old at most."""
    end = time.monotonic() + 10
    while True:
        rows = {row["name"]: row for row in http.get("/ui/models").json()["data"]}
        if holds(rows):
            return rows
        assert time.monotonic() < end, rows
        time.sleep(0.1)


# Sources.


def texts() -> dict[str, tuple[str, str]]:
    source = (PAGE / "texts.js").read_text()
    row = re.compile(
        r'^  "?([\w.]+)"?: \["((?:\\.|[^"\\])*)", "((?:\\.|[^"\\])*)"\],$', re.MULTILINE
    )
    return {name: (english, chinese) for name, english, chinese in row.findall(source)}


def test_every_text_is_there_in_both_languages_and_used() -> None:
    found = texts()
    assert len(found) > 100
    code = "\n".join(path.read_text() for path in SCRIPTS if path.name != "texts.js")
    asked = set(re.findall(r'\bt\(\s*"([\w.]+)"', code))
    assert asked <= found.keys(), asked - found.keys()
    families = set(re.findall(r"\bt\(\s*`(\w+)\.\$", code))
    for name, (english, chinese) in found.items():
        assert english
        assert chinese
        places = [set(re.findall(r"\{(\w+)\}", text)) for text in (english, chinese)]
        assert places[0] == places[1], name
        assert name.partition(".")[0] in families or f'"{name}"' in code, f"{name} is not used"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_elements_only(script: Path) -> None:
    """Nothing turns text into markup or code, and nothing comes from elsewhere."""
    source = script.read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert f"{word}" not in source.replace("goes through innerHTML", ""), word
    imported = re.findall(r'from "([^"]+)"', source)
    assert all(name.startswith("./") and (PAGE / name).is_file() for name in imported)
