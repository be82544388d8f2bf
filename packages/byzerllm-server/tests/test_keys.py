"""Keys over HTTP, in SQLite and in PostgreSQL: who gets in, how much, and what is written down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from byzerllm_server.keys import record
from byzerllm_server.keys.database import COUNTS, UsageRow
from byzerllm_server.keys.store import Store, open_store

PATH = "/v1/chat/completions"
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello my world"}]}
HELLO_TOKENS = 6
LONG = {"model": "slow", "messages": [{"role": "user", "content": "word " * 100}], "stream": True}
NOTICED_SECONDS = 5.0


class Postgres:
    """A PostgreSQL server of its own, on a loopback port, asking for a password."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        # PostgreSQL does not run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.password = secrets.token_hex(12)
        self.url = f"postgresql://keys:{self.password}@127.0.0.1:{self.port}/postgres"
        secret = folder / "password"
        secret.write_text(self.password)
        if self._user:
            for path in (folder, secret):
                os.chown(path, pwd.getpwnam(self._user).pw_uid, -1)
        self._run("initdb", "--no-sync", "-U", "keys", "-A", "scram-sha-256", f"--pwfile={secret}")

    def _run(self, program: str, *options: str) -> None:
        command = [str(self._programs / program), "-D", str(self._folder / "data"), *options]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=self._folder)

    def start(self) -> None:
        settings = ["-F", "-k", str(self._folder), "-h", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            [str(self._programs / "postgres"), "-D", str(self._folder / "data"), *settings],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 20
        while subprocess.run(
            [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)],
            check=False,
        ).returncode:
            assert time.monotonic() < end, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            # The fast shutdown: it does not wait for those who are connected.
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)
            self._process = None


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    # Where Debian has them, which puts only some on the path.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL on this machine (Debian: apt install postgresql)")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    pytest.importorskip("asyncpg", reason="pip install 'byzerllm-server[postgres]'")
    with tempfile.TemporaryDirectory(prefix="bz-pg-") as folder:
        made = Postgres(programs, Path(folder))
        made.start()
        try:
            yield made
        finally:
            made.stop()


@dataclass(frozen=True)
class Site:
    """A server and its keys."""

    served: Any
    place: str

    @property
    def url(self) -> str:
        return str(self.served.url)

    def key(self, **limits: Any) -> str:
        """A new key."""
        return make_key(self.place, **limits)

    def ask(self, key: str, body: dict[str, Any] | None = None, path: str = PATH) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(self.url + path, json=body or HELLO, headers=headers, timeout=30)

    def usage(self, key: str, requests: int) -> dict[str, int]:
        """What was written down for a key, once it is so many requests, refused ones included."""
        end = time.monotonic() + 15
        while True:
            rows = in_store(self.place, lambda s: s.database.usage(ids=[id_of(key)]))
            summed = {name: sum(getattr(row, name) for row in rows) for name in COUNTS}
            if summed["requests"] + summed["refused"] >= requests or time.monotonic() > end:
                return summed
            time.sleep(0.1)


def in_store(place: str, ask: Callable[[Store], Any]) -> Any:
    async def run() -> Any:
        store = open_store(place, create=True)
        await store.database.open()
        try:
            return await ask(store)
        finally:
            await store.database.close()

    return asyncio.run(run())


def id_of(key: str) -> str:
    return record.id_of(record.digest_of(key.encode()))


def make_key(place: str, **limits: Any) -> str:
    plain = record.new_key()
    digest = record.digest_of(plain.encode())
    made = record.Key(
        id=record.id_of(digest),
        digest=digest,
        name=f"user-{digest[:8]}",
        prefix=plain[: record.PREFIX_LENGTH],
        created=time.time(),
        **limits,
    )
    in_store(place, lambda store: store.keys.add(made))
    return plain


def revoke(place: str, key: str) -> None:
    name = f"user-{record.digest_of(key.encode())[:8]}"
    assert in_store(place, lambda store: store.keys.revoke(name))


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "yaml"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").url)
    name = "keys.db" if request.param == "sqlite" else "keys.yaml"
    return str(tmp_path_factory.mktemp("keys") / name)


@pytest.fixture(scope="module")
def site(place: str, serving: Callable[..., Any]) -> Site:
    make_key(place)
    return Site(serving("--keys", place), place)


@pytest.fixture
def lone(tmp_path: Path, serving: Callable[..., Any]) -> Site:
    """A server with a SQLite file that no other test uses."""
    path = str(tmp_path / "keys.db")
    make_key(path)
    return Site(serving("--keys", path), path)


async def ask_at_once(sites: list[Site], key: str, count: int) -> list[int]:
    """The statuses of so many requests at once, in turn to each of the servers."""
    limits = httpx.Limits(max_connections=count)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(limits=limits, timeout=60, headers=headers) as client:
        asked = (client.post(sites[n % len(sites)].url + PATH, json=HELLO) for n in range(count))
        return [answer.status_code for answer in await asyncio.gather(*asked)]


# Who gets in.


def test_a_key_in_both_headers(site: Site) -> None:
    key = site.key()
    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer   {key}"},
        {"x-api-key": key},
    ):
        answer = httpx.post(site.url + PATH, json=HELLO, headers=headers)
        assert answer.status_code == 200, headers
        assert "x-ratelimit-limit-requests" not in answer.headers


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer",
        b"Basic c2stYnotOg==",
        b"Bearer sk-bz-",
        b"Bearer sk-bz-" + b"A" * 43,
        b"Bearer sk-bz-" + b"A" * 20_000,
        "Bearer sk-bz-Schlüssel".encode(),
        "Bearer 钥匙".encode(),
        b"Bearer sk-bz-\xff\xfe",
        b"Bearer ' OR 1=1 --",
        b"Bearer sk-bz-' OR ''='",
    ],
    ids=lambda value: value[:24].decode("latin-1"),
)
def test_wrong_keys(site: Site, value: bytes) -> None:
    for name in (b"authorization", b"x-api-key"):
        answer = httpx.post(site.url + PATH, json=HELLO, headers={name: value})
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "A" * 20 not in answer.text


def test_no_key(site: Site) -> None:
    answer = httpx.get(site.url + "/v1/models")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "missing_api_key"


def test_a_hash_is_no_key(site: Site) -> None:
    digest = record.digest_of(site.key().encode())
    for stolen in (digest, record.MARK + digest, digest[:32]):
        assert site.ask(stolen).status_code == 401


def test_only_its_models(site: Site) -> None:
    key = site.key(models=("echo",))
    assert site.ask(key).status_code == 200
    refused = site.ask(key, {**HELLO, "model": "broken"})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "model_not_allowed"
    listed = httpx.get(site.url + "/v1/models", headers={"x-api-key": key}).json()
    assert [model["id"] for model in listed["data"]] == ["echo"]


def test_expiry(site: Site) -> None:
    key = site.key(expires=time.time() + 3)
    assert site.ask(key).status_code == 200
    time.sleep(3)
    refused = site.ask(key)
    assert refused.status_code == 401
    assert "expired" in refused.json()["error"]["message"]


def test_revoked_while_serving(site: Site) -> None:
    key = site.key()
    assert site.ask(key).status_code == 200
    revoke(site.place, key)
    end = time.monotonic() + NOTICED_SECONDS
    while (answer := site.ask(key)).status_code == 200:
        assert time.monotonic() < end, "a revoked key still holds"
        time.sleep(0.05)
    assert answer.status_code == 401
    assert "revoked" in answer.json()["error"]["message"]


def test_anthropics_shape(site: Site) -> None:
    body = {**HELLO, "max_tokens": 10}
    refused = site.ask("sk-bz-wrong", body, "/v1/messages").json()
    assert refused["error"]["type"] == "authentication_error"
    key = site.key(requests_per_minute=1)
    assert site.ask(key, body, "/v1/messages").status_code == 200
    over = site.ask(key, body, "/v1/messages")
    assert over.status_code == 429
    assert over.json()["error"]["type"] == "rate_limit_error"


def test_a_refused_caller_keeps_its_connection(site: Site) -> None:
    key = site.key()
    with httpx.Client(base_url=site.url) as client:
        for presented, status in (("sk-bz-no", 401), (key, 200), ("sk-bz-no", 401), (key, 200)):
            answer = client.post(PATH, json=HELLO, headers={"x-api-key": presented})
            assert answer.status_code == status
            assert "connection" not in answer.headers
        long = {**HELLO, "messages": [{"role": "user", "content": "w " * 100_000}]}
        answer = client.post(PATH, json=long, headers={"x-api-key": "sk-bz-no"})
        assert answer.status_code == 401
        assert answer.headers["connection"] == "close"
        assert client.post(PATH, json=HELLO, headers={"x-api-key": key}).status_code == 200


# How much.


def test_requests_per_minute(site: Site) -> None:
    key = site.key(requests_per_minute=2)
    answers = [site.ask(key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert left == ["1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    assert 50 <= int(answers[2].headers["retry-after"]) <= 60
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    # What reaches no model is not counted.
    listed = httpx.get(site.url + "/v1/models", headers={"x-api-key": key})
    assert listed.status_code == 200


def test_exactly_as_many_as_allowed(site: Site) -> None:
    key = site.key(requests_per_minute=23)
    statuses = asyncio.run(ask_at_once([site], key, 200))
    assert statuses.count(200) == 23
    assert statuses.count(429) == 177


def test_tokens_per_minute(site: Site) -> None:
    key = site.key(tokens_per_minute=HELLO_TOKENS + 1)
    answers = [site.ask(key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    left = [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers]
    assert left == ["7", "1", "0"]
    assert "tokens per minute" in answers[2].json()["error"]["message"]


def test_concurrency(site: Site) -> None:
    key = site.key(concurrency=2)
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=site.url, headers=headers, timeout=30) as client:
        with contextlib.ExitStack() as running:
            for _ in range(2):
                stream = running.enter_context(client.stream("POST", PATH, json=LONG))
                assert stream.status_code == 200
            refused = client.post(PATH, json=HELLO)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
        end = time.monotonic() + 5
        # The streams were left; the server notices.
        while client.post(PATH, json=HELLO).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("budget", ["token_budget", "monthly_token_budget"])
def test_a_budget(site: Site, budget: str, serving: Callable[..., Any]) -> None:
    key = site.key(**{budget: HELLO_TOKENS + 1})
    answers = [site.ask(key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "insufficient_quota"
    assert site.usage(key, 3)["refused"] == 1
    if budget == "token_budget":
        # Another server knows what is used up.
        other = Site(serving("--keys", site.place), site.place)
        assert other.ask(key).status_code == 429
        assert other.served.stop() == 0


def test_two_servers_share_the_minute(site: Site, serving: Callable[..., Any]) -> None:
    key = site.key(requests_per_minute=30, tokens_per_minute=10_000)
    # Counted by one server alone, before it knows of the other.
    assert asyncio.run(ask_at_once([site], key, 5)) == [200] * 5
    other = Site(serving("--keys", site.place), site.place)
    time.sleep(2.5)
    statuses = asyncio.run(ask_at_once([site, other], key, 100))
    assert statuses.count(200) == 25
    assert statuses.count(429) == 75
    # Tokens, too: the one counts what the other used.
    time.sleep(2.5)
    for server in (site, other):
        left = int(server.ask(key).headers["x-ratelimit-remaining-tokens"])
        assert left == 10_000 - 30 * HELLO_TOKENS
    assert other.served.stop() == 0


def test_processes_of_one_server_share_the_minute(
    tmp_path: Path, serving: Callable[..., Any]
) -> None:
    path = str(tmp_path / "keys.db")
    key = make_key(path, requests_per_minute=20)
    server = Site(serving("--keys", path, "--workers", "2"), path)
    statuses = asyncio.run(ask_at_once([server], key, 100))
    assert statuses.count(200) == 20
    assert server.usage(key, 100) == {
        "requests": 20,
        "errors": 0,
        "refused": 80,
        "prompt_tokens": 60,
        "completion_tokens": 60,
    }


# What is written down.


def test_usage_is_what_was_sent(site: Site) -> None:
    key = site.key()
    prompt = completion = 0
    for words in range(1, 11):
        body = {**HELLO, "messages": [{"role": "user", "content": "w " * words}]}
        if words % 2:
            used = site.ask(key, body).json()["usage"]
            prompt += used["prompt_tokens"]
            completion += used["completion_tokens"]
        else:
            assert site.ask(key, {**body, "stream": True}).text.endswith("data: [DONE]\n\n")
            prompt += words
            completion += words
    for wrong in ({**HELLO, "temperature": "hot"}, {**HELLO, "model": "nobody's"}):
        assert site.ask(key, wrong).status_code in (400, 404)
    broken = site.ask(key, {**HELLO, "model": "broken"})
    assert broken.status_code >= 500
    assert site.usage(key, 13) == {
        "requests": 13,
        "errors": 3,
        "refused": 0,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }
    rows: list[UsageRow] = in_store(site.place, lambda s: s.database.usage(ids=[id_of(key)]))
    by_model = {row.model: row.requests for row in rows}
    # A name that a caller made up is no row.
    assert by_model == {"echo": 10, "broken": 1, "": 2}


def test_a_stream_that_was_left_is_charged(site: Site) -> None:
    key = site.key()
    headers = {"authorization": f"Bearer {key}"}
    with httpx.stream("POST", site.url + PATH, json=LONG, headers=headers) as answer:
        lines = answer.iter_lines()
        while "word" not in next(lines):
            pass
    used = site.usage(key, 1)
    assert (used["requests"], used["errors"]) == (1, 0)
    # 500 bytes of text.
    assert used["prompt_tokens"] == 125
    assert 1 <= used["completion_tokens"] < 100


def test_usage_is_written_at_the_end(lone: Site) -> None:
    key = lone.key()
    for _ in range(20):
        assert lone.ask(key).status_code == 200
    assert lone.served.stop() == 0
    assert lone.usage(key, 0)["requests"] == 20
    assert "ERROR" not in lone.served.output


def test_no_key_in_any_output(site: Site, request: pytest.FixtureRequest) -> None:
    key = site.key()
    assert site.ask(key).status_code == 200
    assert site.ask(key + "x").status_code == 401
    url = f"{site.url}{PATH}?api_key={key}"
    assert httpx.post(url, json=HELLO).status_code == 401
    written = site.served.output
    assert key not in written
    assert record.digest_of(key.encode()) not in written
    if site.place.startswith("postgresql"):
        assert request.getfixturevalue("postgres").password not in written
    rows = in_store(site.place, lambda store: store.keys.keys())
    assert key not in repr(rows)


# A database in trouble.


def test_a_locked_database(lone: Site) -> None:
    free, limited = lone.key(), lone.key(requests_per_minute=1000)
    for key in (free, limited):
        assert lone.ask(key).status_code == 200
    other = sqlite3.connect(lone.place, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        sent = 0
        # Longer than a writer waits.
        end = time.monotonic() + 7
        while time.monotonic() < end:
            began = time.monotonic()
            for key in (free, limited):
                assert lone.ask(key).status_code == 200
            assert time.monotonic() - began < 2
            sent += 1
            time.sleep(0.2)
        other.execute("ROLLBACK")
    finally:
        other.close()
    for key in (free, limited):
        used = lone.usage(key, sent + 1)
        assert used["requests"] == sent + 1
        assert used["prompt_tokens"] == 3 * (sent + 1)
    assert "database is locked" in lone.served.output


def test_a_lost_database(postgres: Postgres, serving: Callable[..., Any]) -> None:
    free, limited = make_key(postgres.url), make_key(postgres.url, requests_per_minute=12)
    stranger = make_key(postgres.url)
    server = Site(serving("--keys", postgres.url), postgres.url)
    for key in (free, limited):
        assert server.ask(key).status_code == 200
    postgres.stop()
    try:
        end = time.monotonic() + 6
        sent = 0
        while time.monotonic() < end:
            assert server.ask(free).status_code == 200
            sent += 1
            time.sleep(0.2)
        # The limit goes on from where it was.
        statuses = [server.ask(limited).status_code for _ in range(13)]
        assert statuses == [200] * 11 + [429] * 2
        unknown = server.ask(stranger)
        assert unknown.status_code == 503
        assert unknown.json()["error"]["code"] == "keys_unavailable"
    finally:
        postgres.start()
    assert server.usage(free, sent + 1)["requests"] == sent + 1
    used = server.usage(limited, 14)
    assert (used["requests"], used["refused"]) == (12, 2)
    end = time.monotonic() + 10
    while server.ask(stranger).status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    # What was counted alone is in the database's minute, too.
    assert server.ask(limited).status_code == 429
    assert postgres.password not in server.served.output
    assert server.served.stop() == 0


def test_a_batch_is_written_once(place: str) -> None:
    key = make_key(place)
    row = UsageRow(key_id=id_of(key), hour=3600, model="m", requests=3, prompt_tokens=5)
    spent = {(id_of(key), "total"): 5}

    async def write(store: Store) -> Any:
        for batch in (1, 1, 2, 1, 2):
            await store.database.record("server-a", batch, [row], spent)
        await store.database.record("server-b", 1, [row], spent)
        found = await store.database.usage(ids=[id_of(key)])
        return found[0].requests, await store.database.spent([id_of(key)], ["total"])

    assert in_store(place, write) == (9, {(id_of(key), "total"): 15})


def test_a_minute_ends(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id = id_of(make_key(place))
    monkeypatch.setattr("byzerllm_server.keys.database.WINDOW_SECONDS", 1.0)

    async def take(store: Store) -> list[bool]:
        taken = [await store.database.take(key_id, 2, 10) for _ in range(3)]
        await asyncio.sleep(1.1)
        taken.append(await store.database.take(key_id, 2, 10))
        await store.database.charge([(key_id, 0, 10)])
        taken.append(await store.database.take(key_id, 2, 10))
        return [window.admitted for window in taken]

    assert in_store(place, take) == [True, True, False, True, False]
