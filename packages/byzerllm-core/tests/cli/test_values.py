from pathlib import Path

import pytest

from byzerllm.cli.values import parse_amounts, parse_pairs, spread
from byzerllm.environment import expand
from byzerllm.errors import UsageError


def test_values_keep_their_text() -> None:
    pairs = parse_pairs(["verbose=true", "n=-1", "url=https://a/b?c=d", "empty="], "--infer_params")
    assert pairs == {"verbose": "true", "n": "-1", "url": "https://a/b?c=d", "empty": ""}


def test_environment_variables_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    assert parse_pairs(["saas.api_key=${TOKEN}"], "--x") == {"saas.api_key": "s3cret"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}-${B}", "1-2"),
        ("${C:-three}", "three"),
        ("${EMPTY:-three}", "three"),
        ("${C:-}", ""),
        ("${C:-a:-b}", "a:-b"),
        ("$${A}", "${A}"),
        ("$A costs 5$", "$A costs 5$"),
        ("${A", "${A"),
    ],
)
def test_expand(text: str, expected: str) -> None:
    assert expand(text, "here", {"A": "1", "B": "2", "EMPTY": ""}) == expected


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(UsageError, match=r"models\.x: the environment variable NOPE is not set"):
        expand("${NOPE}", "models.x", {})


@pytest.mark.parametrize("text", ["${}", "${1A}", "${A B}", "${A-b}"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no environment variable; write"):
        expand(text, "here", {"A": "1"})


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    assert parse_pairs([f"saas.api_key=@{file}"], "--x") == {"saas.api_key": "s3cret"}
    assert parse_pairs(["name=@@handle"], "--x") == {"name": "@handle"}


def test_a_missing_file_is_named_and_its_key_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--x saas.api_key: cannot read .*nope: No such file"):
        parse_pairs([f"saas.api_key=@{tmp_path / 'nope'}"], "--x")


def test_a_model_given_as_a_secret_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"\0" * 70_000)
    with pytest.raises(UsageError, match="larger than 65536 bytes"):
        parse_pairs([f"saas.api_key=@{file}"], "--x")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no UTF-8 text"):
        parse_pairs([f"saas.api_key=@{file}"], "--x")


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--x saas\.api_key is empty; was the variable"):
        parse_pairs(["saas.api_key="], "--x")


@pytest.mark.parametrize("item", ["verbose", "=1", " =1"])
def test_what_is_no_pair_is_refused(item: str) -> None:
    with pytest.raises(UsageError, match="--x takes KEY=VALUE"):
        parse_pairs([item], "--x")


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--x names 'a' twice"):
        parse_pairs(["a=1", "a=2"], "--x")


def test_amounts() -> None:
    assert parse_amounts(["disk=1", "tpu=0.5"], "--resources") == {"disk": 1.0, "tpu": 0.5}


@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf"])
def test_an_amount_is_a_positive_number(value: str) -> None:
    with pytest.raises(UsageError, match="--resources disk takes a positive number"):
        parse_amounts([f"disk={value}"], "--resources")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--p a=1 b=2 --model m", "--p a=1 --p b=2 --model m"),
        ("--p=a=1 b=2 c=3", "--p=a=1 --p b=2 --p c=3"),
        ("--p a=1 --p b=2 c=3", "--p a=1 --p b=2 --p c=3"),
        ("--p a=1 -f x", "--p a=1 -f x"),
        ("--p a=1 -- b=2", "--p a=1 -- b=2"),
        ("--q a=1 b=2", "--q a=1 b=2"),
        ("--infer-params a=1 b=2", "--infer-params a=1 --infer-params b=2"),
        ("--p", "--p"),
    ],
)
def test_spread(given: str, expected: str) -> None:
    assert spread(given.split(), ["--p", "--infer_params"]) == expected.split()
