"""`byzerllm keys`, and the file of keys."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from byzerllm.errors import UsageError
from byzerllm_server.calls import Principal
from byzerllm_server.keys import record
from byzerllm_server.keys.account import Account, Admission
from byzerllm_server.keys.database import UsageRow, database_url
from byzerllm_server.keys.file import KeyFile
from byzerllm_server.keys.place import read_place
from byzerllm_server.keys.store import open_store

KEY = re.compile(r"sk-bz-[\w-]{43}")
PROGRAM = str(Path(sys.executable).with_name("byzerllm"))


def keys(*arguments: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, "keys", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "BYZERLLM_LANG": "en", **environ},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(params=["keys.db", "keys.yaml"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "new" / request.param)


def test_the_life_of_a_key(place: str) -> None:
    made = keys("create", "alice", "--keys", place)
    plain = made.stdout.removesuffix("\n")
    assert KEY.fullmatch(plain)
    assert "alice" in made.stderr
    limits = ("--requests_per_minute", "60", "--tokens-per-minute", "1000", "--concurrency", "2")
    budgets = ("--token_budget", "10000", "--monthly_token_budget", "500")
    options = ("--models", "a,b", "--models", "c", "--expires", "2099-01-31", "--json")
    second = json.loads(keys("create", "bob", "--keys", place, *limits, *budgets, *options).stdout)
    assert KEY.fullmatch(second.pop("key"))
    assert "already" in keys("create", "alice", "--keys", place, code=1).stderr

    listed = json.loads(keys("list", "--keys", place, "--json").stdout)
    assert [row["name"] for row in listed] == ["alice", "bob"]
    expected = {
        "models": ["a", "b", "c"],
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "concurrency": 2,
        "token_budget": 10000,
        "monthly_token_budget": 500,
        "expires": "2099-01-31T00:00:00Z",
        "state": "active",
    }
    assert expected.items() <= listed[1].items()
    assert expected.items() <= second.items()
    table = keys("list", "--keys", place).stdout
    assert "0 / 10,000 (0 / 500 this month)" in table

    assert "did you mean 'alice'" in keys("revoke", "alise", "--keys", place, code=1).stderr
    keys("revoke", "alice", "--keys", place)
    assert "alice" not in keys("list", "--keys", place).stdout
    states = {
        row["name"]: row["state"]
        for row in json.loads(keys("list", "--all", "--json", "--keys", place).stdout)
    }
    assert states == {"alice": "revoked", "bob": "active"}
    # The name is free again.
    again = keys("create", "alice", "--keys", place).stdout.strip()
    assert again != plain
    assert "nothing was used" in keys("usage", "--keys", place).stderr

    folder = Path(place).parent
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    assert plain.encode() not in stored
    assert hashlib.sha256(plain.encode()).hexdigest().encode() in stored
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


def test_usage(tmp_path: Path) -> None:
    place = str(tmp_path / "keys.db")
    plain = keys("create", "alice", "--keys", place).stdout.strip()
    key_id = record.id_of(record.digest_of(plain.encode()))
    hour = int(time.time()) // 3600 * 3600

    async def write() -> None:
        store = open_store(place, create=False)
        rows = [
            UsageRow(key_id=key_id, hour=at, model=model, requests=2, errors=1, prompt_tokens=7)
            for at in (hour, hour - 60 * 86400)
            for model in ("a", "b")
        ]
        await store.database.record("server", 1, rows, {})
        await store.database.close()

    asyncio.run(write())
    rows = json.loads(keys("usage", "--keys", place, "--json").stdout)
    assert [(row["name"], row["model"], row["requests"]) for row in rows] == [
        ("alice", "a", 2),
        ("alice", "b", 2),
    ]
    older = keys("usage", "--keys", place, "--since", "90d", "--by", "month", "--json").stdout
    assert sum(row["prompt_tokens"] for row in json.loads(older)) == 28
    assert "prompt tokens" in keys("usage", "--keys", place, "--name", "alice").stdout
    assert "no key 'alic'" in keys("usage", "--keys", place, "--name", "alic", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "bob", "--concurrency", "0"), "at least 1"),
        (("create", "bob", "--expires", "yesterday"), "is no time"),
        (("create", "bob", "--expires", "2001-01-01"), "in the past"),
        (("create", "bob", "--expires", "99999999999d"), "is no time"),
        (("create", ""), "is no name"),
        (("create", "a\nb"), "is no name"),
        (("create", "sk-bz-abc"), "is no name"),
        (("create", "bob", "--keys", "mysql://u:hidden@h/d"), "sqlite, postgresql"),
        (("create", "bob", "--keys", "postgresql://u:hidden@h:port/d"), "no URL"),
        (("create", "bob", "--keys", "postgresql://u:hidden@127.0.0.1:1/d"), "cannot be used"),
        (("create", "bob", "--keys", "${NOT_SET_HERE}"), "NOT_SET_HERE"),
        (("create", "bob", "--keys", "/dev/null/keys.db"), "cannot be written"),
        (("list", "--keys", "/nowhere/keys.db"), "no file /nowhere/keys.db"),
        (("list", "--keys", "/nowhere/keys.yaml"), "/nowhere/keys.yaml"),
        (("creat", "bob"), "did you mean 'create'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    # What the option parser refuses ends with 2, what is found out later with 1.
    code = 2 if said in ("at least 1", "did you mean 'create'") else 1
    done = keys(*arguments, code=code, HOME=str(tmp_path))
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "hidden" not in done.stderr
    assert not done.stdout


def test_chinese(tmp_path: Path) -> None:
    place = str(tmp_path / "keys.db")
    assert KEY.fullmatch(keys("create", "甲", "--keys", place, BYZERLLM_LANG="zh").stdout.strip())
    assert "密钥" in keys("--help", BYZERLLM_LANG="zh").stdout
    for verb in ("create", "list", "revoke", "usage"):
        text = keys(verb, "--help", BYZERLLM_LANG="zh").stdout
        assert re.search("[一-鿿]", text)
        assert f"byzerllm keys {verb}" in text


def entry(**fields: Any) -> dict[str, Any]:
    return {"name": "alice", "sha256": "0" * 64, **fields}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"keys": []}, "version: 1"),
        ({"version": 1, "kees": []}, "'kees'"),
        ({"version": 1, "keys": {}, "usage": 3}, "usage"),
        ({"version": 1, "keys": [{"name": "alice"}]}, "sha256"),
        ({"version": 1, "keys": [entry(sha256="sk-bz-" + "A" * 43)]}, "a key itself never"),
        ({"version": 1, "keys": [entry(key="sk-bz-" + "A" * 43)]}, "'key'"),
        ({"version": 1, "keys": [entry(**{"sk-bz-" + "A" * 43: 1})]}, "a key itself"),
        ({"version": 1, "keys": [entry(prefix="sk-bz-" + "A" * 43)]}, "prefix"),
        ({"version": 1, "keys": [entry(concurrency=0)]}, "concurrency"),
        ({"version": 1, "keys": [entry(concurrency=True)]}, "concurrency"),
        ({"version": 1, "keys": [entry(models="a")]}, "models"),
        ({"version": 1, "keys": [entry(expires="soon")]}, "expires"),
        ({"version": 1, "keys": [entry(), entry(sha256="1" * 64)]}, "twice"),
    ],
)
def test_a_bad_file(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError) as caught:
        KeyFile(path).load()
    assert said in caught.value.message
    assert "A" * 20 not in caught.value.message


def test_a_file_that_breaks_keeps_its_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "keys": [entry(expires="2099-01-01")]}))
    file = KeyFile(path)
    file.load()

    async def look() -> None:
        assert await file.find("0" * 64) is not None
        path.write_text("version: 1\nkeys: [sk-bz-oops")
        assert await file.find("0" * 64) is not None
        assert "the keys read before hold on" in caplog.text
        assert "oops" not in caplog.text
        path.write_text("version: 1\nkeys: []\n")
        assert await file.find("0" * 64) is None

    asyncio.run(look())


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_URL", "postgresql://u:hidden@h/d")
    assert read_place("${KEYS_URL}") == "postgresql://u:hidden@h/d"
    url = database_url(read_place("${KEYS_URL}"))
    assert url.drivername == "postgresql+asyncpg"
    assert "hidden" not in repr(open_store(str(tmp_path / "k.db"), create=True))
    monkeypatch.chdir(tmp_path)
    assert read_place("k.db") == str(tmp_path / "k.db")
    assert database_url("sqlite:////a/b.db").database == "/a/b.db"


def test_nothing_shows_a_key() -> None:
    plain = record.new_key()
    digest = record.digest_of(plain.encode())
    made = record.Key(
        id=record.id_of(digest), digest=digest, name="a", prefix=plain[:12], created=0.0
    )
    account = Account(made)
    for thing in (made, account, account.admission, account.principal):
        assert plain not in repr(thing)
    assert isinstance(account.admission, Admission)
    assert not isinstance(account.principal, Admission)
    assert isinstance(account.principal, Principal)
    assert len({record.new_key() for _ in range(1000)}) == 1000


def test_a_budget_of_a_month_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_795_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    key = record.Key(id="i", digest="d", name="a", prefix="p", created=0.0, monthly_token_budget=10)
    account = Account(key)
    account.spend(10)
    assert "2026-11" in account.exhausted()
    # What the database has not heard of yet is not forgotten.
    account.load(key, {("i", "2026-11"): 3})
    assert account.exhausted()
    now += 31 * 86400
    assert not account.exhausted()
