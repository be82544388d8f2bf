"""`byzerllm deploy`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.cli.i18n import _
from byzerllm.cli.options import (
    Number,
    Registered,
    address_option,
    json_option,
    model_option,
    option,
    pairs_option,
    verb,
)
from byzerllm.cli.session import connect, session

if TYPE_CHECKING:
    from byzerllm.runtime.deployment import DeploymentSpec

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_EXAMPLES = (
    (
        _("a GGUF file with llama.cpp, ten requests at once"),
        "byzerllm deploy --model_path /models/llama-3.gguf --model llama_3_chat \\\n"
        "    --infer_backend llama_cpp --worker_concurrency 10 --infer_params n_ctx=4096",
    ),
    (
        _("a hosted model; its key comes from the environment"),
        "byzerllm deploy --pretrained_model_type saas/qianwen --model qianwen_chat \\\n"
        "    --infer_params 'saas.api_key=${QIANWEN_KEY}' saas.model=qwen-max",
    ),
    (
        _("the same with the key in a file"),
        "byzerllm deploy --pretrained_model_type saas/openai --model gpt \\\n"
        "    --infer_params saas.api_key=@~/.openai-key saas.model=gpt-4o",
    ),
    (
        _("two workers with a GPU each; the old ones answer until the new ones are ready"),
        "byzerllm deploy --model_path hf:Qwen/Qwen2.5-7B-Instruct --model qwen \\\n"
        "    --num_workers 2 --gpus_per_worker 1 --replace",
    ),
)


def absolute(model_path: str, folder: Path) -> str:
    """A path that holds on another process, too: relative ones that exist here become absolute."""
    if not model_path or _SCHEME.match(model_path):
        return model_path
    path = Path(model_path).expanduser()
    beside = folder / path
    return str(beside.resolve()) if beside.exists() else str(path)


def show_meta(model: str, meta: dict[str, Any]) -> None:
    """What was deployed, and what to type next."""
    from byzerllm.cli.render import key_values

    session.out.print(key_values(meta))
    session.hint(_("next: {command}").format(command=f"byzerllm query --model {model} --query '…'"))


def _spec(given: dict[str, Any]) -> DeploymentSpec:
    from byzerllm.plugins import get_plugins
    from byzerllm.runtime.deployment import DeploymentSpec, resolve

    asked = {key: value for key, value in given.items() if value is not None and value != {}}
    if "model_path" in asked:
        asked["model_path"] = absolute(asked["model_path"], Path.cwd())
    # Checked here so that a slip is told before a cluster is joined or started.
    return resolve(DeploymentSpec(**asked), get_plugins())[0]


def _names(_context: Any, _parameter: Any, value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",") if name.strip()] if value else None


@verb(
    "deploy",
    help=_(
        "Deploy a model on the cluster and wait until it answers.\n\n"
        "Dashes and underscores in options mean the same. When a worker cannot load the model, "
        "its error is shown and nothing stays behind."
    ),
    examples=_EXAMPLES,
)
@model_option(
    _("Name that the model gets; query, undeploy and the clients call it so."), panel=_("Model")
)
@option(
    "--model_path",
    metavar="PATH",
    panel=_("Model"),
    help=_("File or folder on the workers' nodes, or demo:, hf:owner/name, modelscope:owner/name."),
)
@option(
    "--pretrained_model_type",
    "model_type",
    metavar="TYPE",
    panel=_("Model"),
    help=_("custom/auto, a model family such as custom/llama2, or a provider: saas/NAME."),
)
@option(
    "--infer_backend",
    "backend",
    type=Registered("backends"),
    panel=_("Model"),
    help=_("What runs the model; chosen by the model's format when left out."),
)
@pairs_option(
    "--infer_params",
    panel=_("Model"),
    help=_(
        "Parameters of the backend or provider. ${NAME} is taken from the environment, "
        "KEY=@FILE from a file."
    ),
)
@option(
    "--num_workers",
    type=Number(int),
    panel=_("Workers"),
    help=_("Worker processes, each with its own copy of the model; 1 when left out."),
)
@option(
    "--gpus_per_worker",
    type=Number(float),
    panel=_("Workers"),
    help=_("GPUs that each worker reserves; fractions share one. 0 when left out."),
)
@option(
    "--cpus_per_worker",
    type=Number(float),
    panel=_("Workers"),
    help=_("CPUs that each worker reserves; fractions share one. 1 when left out."),
)
@option(
    "--worker_concurrency",
    type=Number(int),
    panel=_("Workers"),
    help=_("Requests that a worker runs at once; the backend's own default when left out."),
)
@option(
    "--max_queue",
    type=Number(int),
    panel=_("Workers"),
    help=_("Requests that wait in a worker beyond those; one more is refused. 100 when left out."),
)
@option(
    "--balancer",
    "--load_balance_way",
    "balancer",
    type=Registered("balancers"),
    panel=_("Workers"),
    help=_("How callers pick a worker; lru when left out."),
)
@pairs_option(
    "--resources",
    amounts=True,
    panel=_("Workers"),
    help=_("Custom Ray resources that each worker reserves."),
)
@option(
    "--node",
    metavar="IP",
    panel=_("Workers"),
    help=_("Address of the node that the workers must run on."),
)
@option(
    "--fallbacks",
    "fallbacks",
    metavar="MODEL[,MODEL …]",
    callback=_names,
    panel=_("Model"),
    help=_("Models that answer chats when this one is overloaded or its vendor fails."),
)
@option(
    "--no_check",
    is_flag=True,
    default=None,
    panel=_("Model"),
    help=_("Do not ask a hosted model's vendor whether key and model are right."),
)
@option(
    "--replace",
    is_flag=True,
    help=_("Take the place of a model of this name; it answers until the new one is ready."),
)
@option("--start_ray", is_flag=True, help=_("Start a Ray head that stays if none runs here."))
@address_option()
@json_option()
def command(
    replace: bool,
    no_check: bool | None,
    start_ray: bool,
    ray_address: str,
    as_json: bool,
    **given: Any,
) -> None:
    from byzerllm.cli.progress import WorkerProgress
    from byzerllm.cli.render import print_json

    spec = _spec({**given, "check": False if no_check else None})
    llm = connect(ray_address, start_ray=start_ray, offer_ray=True)
    with WorkerProgress(spec.model) as progress:
        meta = llm.deploy_spec(spec, replace=replace, progress=progress)
    if as_json:
        print_json(meta)
    else:
        show_meta(spec.model, meta)
