from pathlib import Path

import pytest

from byzerllm.cli.upfile import read_up_file
from byzerllm.errors import UsageError


def written(folder: Path, text: str) -> Path:
    file = folder / "byzerllm.yaml"
    file.write_text(text, encoding="utf-8")
    return file


FULL = """\
version: 1
project: demo
x-common: &common
  infer_backend: echo
  cpus_per_worker: 0.5
models:
  first:
    <<: *common
    infer_params: {delay: "${DELAY:-0.1}", chunks: 3}
    num_workers: "${N}"
    max_queue: 7
    load_balance_way: round_robin
    worker_concurrency: 5
    resources: {disk: 1}
    node: 10.0.0.7
  second:
    <<: *common
    cpus_per_worker: 0.25
"""


def test_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N", "2")
    found = read_up_file(written(tmp_path, FULL))
    assert found.project == "demo"
    first, second = found.specs["first"], found.specs["second"]
    assert first.model == "first"
    assert first.project == "demo"
    assert first.backend == "echo"
    assert first.infer_params == {"delay": "0.1", "chunks": 3}
    assert (first.num_workers, first.max_queue, first.worker_concurrency) == (2, 7, 5)
    assert first.cpus_per_worker == 0.5
    assert first.balancer == "round_robin"
    assert first.resources == {"disk": 1.0}
    assert first.node == "10.0.0.7"
    assert second.cpus_per_worker == 0.25
    assert second.worker_concurrency == 1000, "the backend's default"


def test_the_project_is_the_folder_by_default(tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    assert read_up_file(written(folder, "version: 1\nmodels: {}\n")).project == "my-models"


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    text = "version: 1\nmodels:\n  m: {infer_backend: echo, model_path: weights}\n"
    file = written(tmp_path, text)
    monkeypatch.chdir("/")
    assert read_up_file(file).specs["m"].model_path == str(tmp_path / "weights")


def test_the_name_alone_needs_no_variables(tmp_path: Path) -> None:
    text = "version: 1\nproject: demo\nmodels:\n  m: {model_path: '${NOPE}'}\n"
    assert read_up_file(written(tmp_path, text), models=False).project == "demo"


def test_secrets_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("word\n")
    text = f"version: 1\nmodels:\n  m: {{infer_backend: echo, model_path: '@{tmp_path}/key'}}\n"
    assert read_up_file(written(tmp_path, text)).specs["m"].model_path == "word"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 0, "the file is empty"),
        ("- a\n", 1, "the file must be a mapping"),
        ("models: {}\n", 1, "the key 'version: 1' is missing"),
        ("version: 1\n", 1, "the key 'models' is missing"),
        ("models: {}\nversion: 2\n", 2, "version must be 1"),
        ("version: 1\nmodel: {}\n", 2, "has no key 'model' (did you mean 'models'?)"),
        ("version: 1\nproject: a b\nmodels: {}\n", 2, "project must be a name"),
        ("version: 1\nmodels: [a]\n", 2, "models must be a mapping"),
        ("version: 1\nmodels:\n  m: [a]\n", 3, "models.m must be a mapping"),
        ("version: 1\nmodels:\n  m: {}\n  n: {}\n  m: {}\n", 5, "the key 'm' comes twice"),
        (
            "version: 1\nmodels:\n  m:\n    num_worker: 2\n",
            4,
            "models.m has no key 'num_worker' (did you mean 'num_workers'?); allowed: model_path,",
        ),
        ("version: 1\nmodels:\n  m:\n    num_workers: two\n", 4, "models.m.num_workers: Expected"),
        ("version: 1\nmodels:\n  m:\n    num_workers: [1]\n", 4, "models.m.num_workers: Expected"),
        ("version: 1\nmodels:\n  m:\n    infer_params: x\n", 4, "models.m.infer_params: Expected"),
        ("version: 1\nmodels:\n  m:\n    model_path: [x]\n", 4, "models.m.model_path: Expected"),
        (
            "version: 1\nmodels:\n  m:\n    infer_params:\n      a: 1\n      a: 2\n",
            6,
            "the key 'a' comes twice",
        ),
        (
            "version: 1\nmodels:\n  m:\n    model_path: ${NOPE}\n",
            4,
            "models.m.model_path: the environment variable NOPE is not set",
        ),
        (
            "version: 1\nmodels:\n  m:\n    infer_backend: echo\n    num_workers: 0\n",
            3,
            "models.m: parameter 'num_workers' for deploy: at least 1",
        ),
        (
            "version: 1\nmodels:\n  m:\n    infer_backend: ehco\n",
            3,
            "models.m: unknown parameter 'ehco' for a backend (did you mean 'echo'?)",
        ),
        (
            "version: 1\nmodels:\n  m:\n    infer_backend: echo\n    infer_params: {dealy: 1}\n",
            3,
            "models.m: unknown parameter 'dealy'",
        ),
        ("version: 1\nmodels: {\n", 3, ""),
        ("version: 1\nmodels: *nope\n", 2, "undefined alias"),
        ("version: 1\nmodels: {? [a] : 1}\n", 2, "a key must be a text"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    text: str, line: int, message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_up_file(file)
    place = f"{file}:{line}: " if line else f"{file}: "
    assert caught.value.message.startswith(place)
    assert message in caught.value.message


def test_a_secret_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "s3cret-value")
    text = (
        "version: 1\nmodels:\n  m:\n    infer_backend: echo\n"
        "    infer_params: {saas.api_key: '${KEY}'}\n"
    )
    with pytest.raises(UsageError) as caught:
        read_up_file(written(tmp_path, text))
    assert "s3cret" not in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*nope.yaml: No such file"):
        read_up_file(tmp_path / "nope.yaml")
    file = tmp_path / "latin.yaml"
    file.write_bytes("project: café".encode("latin-1"))
    with pytest.raises(UsageError, match="no UTF-8 text"):
        read_up_file(file)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    text = "version: 1\nmodels: !!python/object/apply:os.getcwd []\n"
    with pytest.raises(UsageError):
        read_up_file(written(tmp_path, text))
