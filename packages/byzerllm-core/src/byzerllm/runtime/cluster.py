"""Joining and starting Ray, and reaching the controller."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from byzerllm.errors import (
    ClusterAuthenticationError,
    ClusterError,
    ClusterNotFoundError,
    ParameterError,
    ProtocolError,
)

NAMESPACE = "byzerllm"
CONTROLLER = "byzerllm:controller"
USER_NAMESPACE = "default"
CONNECT_SECONDS = 15
CONTROLLER_SECONDS = 60
_HOST_PORT = re.compile(r"^(ray://)?(\[[0-9a-fA-F:]+\]|[^\s:/]+):(\d{1,5})$")

_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_TOKEN_HELP = (
    "If it uses token authentication, put its token (`ray get-auth-token` on the head prints it) "
    "into ~/.ray/auth_token or RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token"
)


def connect_cluster(address: str = "auto", **ray_init_options: Any) -> None:
    """Join a Ray cluster, or start one that ends with this process.

    Args:
        address: `auto` joins the cluster that runs on this machine (or `RAY_ADDRESS`) and never
            starts one; `local` starts one; `HOST:PORT` joins that one; `ray://HOST:PORT` connects
            as a Ray Client.
        ray_init_options: passed on to `ray.init`.

    Ray's token is presented when there is one: `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` or
    `~/.ray/auth_token`. Calling it again for a live connection changes nothing.

    Raises:
        ParameterError: the address has none of these forms.
        ClusterNotFoundError: nothing answers there.
        ClusterAuthenticationError: the token is missing or wrong.
    """
    _check_address(address)
    _present_token(address)
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"namespace": USER_NAMESPACE, "ignore_reinit_error": True}
    if address == "local":
        options |= {"include_dashboard": False, "address": "local"}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    elif address == "auto":
        target = _find_running()
        _probe(target)
        options["address"] = target
    else:
        _probe(address)
        options["address"] = address
    options |= ray_init_options
    # Ray's proxy was seen to lose the first server that it forks for a Ray Client.
    for attempt in range(2 if address.startswith("ray://") else 1, 0, -1):
        try:
            ray.init(**options)
            return
        except Exception as error:
            with contextlib.suppress(Exception):
                ray.shutdown()
            if attempt == 1 or not isinstance(error, ConnectionError):
                raise _explained(address, error) from error


def _check_address(address: str) -> None:
    if address in ("auto", "local"):
        return
    match = _HOST_PORT.match(address)
    if not match or int(match[3]) > 65535:
        raise ParameterError(
            f"address {address!r} is none; allowed: 'auto', 'local', 'HOST:PORT', 'ray://HOST:PORT'"
        )


def _present_token(address: str) -> None:
    """Ray takes a token only in token mode, which is not the default of a joining process, and
    reads the mode and the token once, when it is imported."""
    if address == "local":
        return
    if "RAY_AUTH_MODE" not in os.environ and token_source():
        os.environ["RAY_AUTH_MODE"] = "token"
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def token_source() -> str:
    """Where this process would take Ray's token from, or an empty string; never the token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and Path(path).is_file():
        return "RAY_AUTH_TOKEN_PATH"
    if (Path.home() / ".ray" / "auth_token").is_file():
        return "~/.ray/auth_token"
    return ""


def _find_running() -> str:
    from ray._private import services

    chosen = os.environ.get("RAY_ADDRESS", "")
    if chosen and chosen not in ("auto", "local"):
        return chosen
    try:
        address: str | None = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, RuntimeError):
        address = None
    if not address:
        raise ClusterNotFoundError(
            "no Ray cluster runs on this machine; start one with `ray start --head`, name one by "
            "address, or pass address='local' for one that ends with this process"
        )
    return address


def _probe(address: str) -> None:
    """Ask the cluster for its id. `ray.init` would wait long and say little of a refusal.

    Raises:
        ClusterNotFoundError: nobody listens there.
        ClusterAuthenticationError: the token is refused.
    """
    match = _HOST_PORT.match(address)
    if not match:
        return
    host, port = match[2].strip("[]"), int(match[3])
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise ClusterNotFoundError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); is it running, and "
            "is the port right? (6379 for HOST:PORT, 10001 for ray://HOST:PORT)"
        ) from None
    import grpc
    from ray._private.authentication.grpc_authentication_client_interceptor import (
        _get_authentication_metadata_tuple,
    )

    method = "/ray.rpc.RayletDriver/ClusterInfo" if match[1] else _CLUSTER_ID
    with grpc.insecure_channel(f"{match[2]}:{port}") as channel:
        ask: Any = channel.unary_unary(method)
        try:
            ask(b"", metadata=_get_authentication_metadata_tuple(), timeout=10)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise _refused(address) from None
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ClusterNotFoundError(
                    f"what listens at {address} is no Ray cluster ({error.details()})"
                ) from None


def _refused(address: str) -> ClusterAuthenticationError:
    return ClusterAuthenticationError(
        f"the Ray cluster at {address} refuses this process ({_token_state()}). {_TOKEN_HELP}"
    )


def _explained(address: str, error: Exception) -> ClusterError:
    text = f"{type(error).__name__}: {error}"
    lowered = text.lower()
    if address == "local":
        return ClusterError(
            f"Ray did not start on this machine ({text.splitlines()[0][:300]}); where it is short "
            "of memory or very busy, try again when it has less to do"
        )
    if any(word in lowered for word in ("unauthenticated", "authentication", "auth_token")) or (
        "token" in lowered
    ):
        return _refused(address)
    if isinstance(error, ConnectionError | TimeoutError) or "timed out" in lowered:
        return ClusterNotFoundError(
            f"the Ray cluster at {address!r} did not let this process in "
            f"({text.splitlines()[0][:300]}; {_token_state()}). {_TOKEN_HELP}"
        )
    return ClusterError(f"Ray could not be joined at {address!r}: {text}")


def _token_state() -> str:
    source = token_source()
    mode = os.environ.get("RAY_AUTH_MODE", "unset")
    return f"token from {source or 'nowhere'}, RAY_AUTH_MODE {mode}"


def start_head(port: int | None = None, *, num_cpus: int | None = None) -> str:
    """Start a Ray head on this machine that stays when this process ends.

    It asks for a token (`~/.ray/auth_token`, made when there is none) unless `RAY_AUTH_MODE` says
    otherwise.

    Returns:
        its address, `HOST:PORT`.

    Raises:
        ClusterError: `ray start` failed; its last lines are the message.
    """
    port = port or (6379 if _port_free(6379) else _free_port())
    environ = os.environ | {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token")}
    if environ["RAY_AUTH_MODE"] == "token" and not token_source():
        _generate_token(environ)
    command = [_ray_command(), "start", "--head", f"--port={port}", "--disable-usage-stats"]
    command += ["--include-dashboard=false", "--dashboard-host=127.0.0.1"]
    if num_cpus is not None:
        command.append(f"--num-cpus={num_cpus}")
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        tail = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise ClusterError("`ray start --head` failed: " + "\n".join(tail))
    found = re.search(r"--address='([^']+)'", done.stdout)
    return found[1] if found else f"{_own_address()}:{port}"


def _generate_token(environ: Mapping[str, str]) -> None:
    """Write a new `~/.ray/auth_token`."""
    command = [_ray_command(), "get-auth-token", "--generate"]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise ClusterError(
            "Ray's token could not be made with `ray get-auth-token --generate`; set "
            "RAY_AUTH_MODE=disabled to start a head without authentication"
        )


def _ray_command() -> str:
    beside = Path(sys.executable).with_name("ray")
    return str(beside) if beside.exists() else shutil.which("ray") or "ray"


def _port_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def require_ray() -> Any:
    """The `ray` module, connected.

    Raises:
        ClusterNotFoundError: nobody called `connect_cluster` or `ray.init`.
    """
    import ray

    if not ray.is_initialized():
        raise ClusterNotFoundError(
            "this process is not connected to Ray; call byzerllm.connect_cluster(address=…) first, "
            "or use ByzerLLM(runtime='local')"
        )
    return ray


def is_ray_client() -> bool:
    """Whether this process is a Ray Client (`ray://`)."""
    from ray.util.client import ray as client

    return bool(client.is_connected())


def current_connection() -> Any:
    """An object that lives as long as this process's connection to Ray; None without one."""
    import ray

    if not ray.is_initialized():
        return None
    if is_ray_client():
        from ray.util.client import ray as client

        return client.get_context().client_worker
    from ray._private.worker import global_worker

    return global_worker.core_worker


def get_controller(*, start: bool) -> Any:
    """The handle of the cluster's controller.

    Args:
        start: make one when the cluster has none yet.

    Raises:
        ClusterNotFoundError: there is none and `start` is false.
        ProtocolError: it is of another version.
    """
    ray = require_ray()
    with contextlib.suppress(ValueError):
        return _agreed(ray.get_actor(CONTROLLER, namespace=NAMESPACE))
    if not start:
        raise ClusterNotFoundError("nothing was ever deployed on this cluster")
    from byzerllm.runtime.controller import Controller

    actor = ray.remote(Controller).options(
        name=CONTROLLER,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
        # The head's death is the cluster's; any other node may come and go.
        resources={"node:__internal_head__": 0.001},
        max_concurrency=10_000,
    )
    return _agreed(actor.remote())


def _agreed(controller: Any) -> Any:
    """The controller once it is ready, if it speaks this process's protocol."""
    import ray

    from byzerllm.runtime.wire import PROTOCOL

    end = time.monotonic() + CONTROLLER_SECONDS
    while True:
        try:
            theirs = ray.get(controller.ready.remote(), timeout=CONTROLLER_SECONDS)
            if theirs == PROTOCOL:
                return controller
            raise ProtocolError(
                f"the controller of this cluster speaks protocol {theirs}, this process {PROTOCOL};"
                " install the same byzerllm-core version here and there, or undeploy everything "
                "and kill the actor byzerllm:controller"
            )
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(
                f"the controller did not start within {CONTROLLER_SECONDS} s; see `ray logs`"
            ) from None
        except ray.exceptions.RayActorError as error:
            if time.monotonic() > end:
                raise ClusterError(f"the controller does not start: {error}") from error
            time.sleep(0.2)
