"""`byzerllm serve`."""

from __future__ import annotations

import ipaddress
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byzerllm.cli.i18n import _
from byzerllm.cli.options import address_option, option, verb
from byzerllm.cli.session import session
from byzerllm.errors import UsageError

if TYPE_CHECKING:
    from byzerllm_server.settings import ServerSettings

MEBI = 1024 * 1024


@verb(
    "serve",
    help=_(
        "Serve the models over HTTP, with the APIs of OpenAI and Anthropic and a page to chat.\n\n"
        "Without keys everybody who reaches the address may call: keep it on 127.0.0.1, or give "
        "--api_key."
    ),
    examples=(
        (_("all models of the cluster of this machine"), "byzerllm serve --port 8000"),
        (
            _("for a team, with a key out of a file"),
            "byzerllm serve --host 0.0.0.0 --api_key @~/.byzerllm-key",
        ),
        (
            _("for many users, each with a key of their own"),
            "byzerllm serve --host 0.0.0.0 --keys ~/.byzerllm/keys.db",
        ),
        (
            _("a gateway to hosted models, without a cluster"),
            "byzerllm serve --runtime local --config byzerllm.yaml",
        ),
    ),
)
@option(
    "--runtime",
    type=click.Choice(["ray", "local"]),
    default="ray",
    show_default=True,
    help=_("Where the models are: on a Ray cluster, or in this process (with --config)."),
)
@address_option()
@option("--config", metavar="FILE", help=_("Models of --runtime local, as for byzerllm up."))
@option("--host", default="127.0.0.1", show_default=True, help=_("Address to listen on."))
@option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
        help=_("Port to listen on."))  # fmt: skip
@option("--api_key", metavar="KEY", help=_("The key to ask for; ${NAME} or @FILE."))
@option("--keys", metavar="URL_OR_FILE",
        help=_("Keys of many users: the database, or keys file, of byzerllm keys."))  # fmt: skip
@option(
    "--served_model_name",
    multiple=True,
    metavar="NAME=MODEL",
    help=_("Serve a model under this name; only those that are named are served."),
)
@option("--cors_origin", multiple=True, metavar="ORIGIN",
        help=_("A page of this origin may call from a browser; * for all."))  # fmt: skip
@option("--ssl_certfile", metavar="FILE", help=_("Certificate, for HTTPS."))
@option("--ssl_keyfile", metavar="FILE", help=_("Key of the certificate."))
@option("--max_body_mb", type=click.IntRange(1), default=32, show_default=True,
        help=_("Longest request, in MiB."))  # fmt: skip
@option("--workers", "processes", type=click.IntRange(1, 256), default=1, show_default=True,
        metavar="N", help=_("Processes that share the port."))  # fmt: skip
@option("--ray_serve", is_flag=True,
        help=_("Serve from every node of the cluster, by Ray Serve."))  # fmt: skip
@option("--num_replicas", type=click.IntRange(1, 1000), default=1, show_default=True,
        metavar="N", help=_("Processes that answer, with --ray_serve."))  # fmt: skip
@option("--body_timeout", type=click.FloatRange(0, min_open=True), default=60.0,
        show_default=True, help=_("Seconds in which a request must have come."))  # fmt: skip
@option("--request_timeout", type=click.FloatRange(0, min_open=True), default=600.0,
        show_default=True, help=_("Seconds that an answer may take."))  # fmt: skip
@option("--stop_timeout", type=click.FloatRange(0), default=60.0, show_default=True,
        help=_("Seconds that running answers may go on when the server is stopped."))  # fmt: skip
@option("--access_log", metavar="FILE|-|off", default="-", show_default=True,
        help=_("Gets a line of JSON for each request; - is standard output."))  # fmt: skip
@option("--open_metrics", is_flag=True, help=_("/metrics needs no key."))
@option("--no_page", is_flag=True, help=_("Leave out the page at /."))
@option("--otel_endpoint", metavar="URL",
        help=_("Send traces there, by OTLP over HTTP."))  # fmt: skip
def command(**given: Any) -> None:
    from byzerllm.cli.progress import WorkerProgress
    from byzerllm_server.serving import serve

    settings = _settings(given)
    if not session.verbose:
        # Ray's Python half warns of what the options above have decided.
        warnings.simplefilter("ignore")

    def announce(address: str) -> None:
        _warn_of_open_door(settings)
        session.hint(_("listening on {address} - stop it with Ctrl-C").format(address=address))

    if given["ray_serve"]:
        from byzerllm_server.ray_serve import serve_on_ray

        serve_on_ray(settings, num_replicas=given["num_replicas"], announce=announce)
        return
    serve(settings, announce=announce, progress=WorkerProgress)


def _warn_of_open_door(settings: ServerSettings) -> None:
    if settings.api_key or settings.keys_url or _is_loopback(settings.host):
        return
    session.err.print(
        _(
            "warning: everybody who reaches {host} may call the models, at your expense; give "
            "--api_key, or listen on 127.0.0.1"
        ).format(host=settings.host),
        style="yellow",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _settings(given: dict[str, Any]) -> ServerSettings:
    from byzerllm_server.settings import ServerSettings

    if given["runtime"] == "local" and not given["config"]:
        raise UsageError(_("--runtime local needs --config FILE, which names the models"))
    if given["runtime"] == "ray" and given["config"]:
        raise UsageError(
            _(
                "--config goes with --runtime local; models of a cluster are deployed with "
                "byzerllm up"
            )
        )
    if given["ray_serve"] and (given["runtime"] == "local" or given["processes"] > 1):
        raise UsageError(
            _("--ray_serve goes with --num_replicas, not with --workers or --runtime local")
        )
    if bool(given["ssl_certfile"]) != bool(given["ssl_keyfile"]):
        raise UsageError(_("--ssl_certfile and --ssl_keyfile go together"))
    if given["api_key"] and given["keys"]:
        raise UsageError(_("--api_key is one key, --keys are many; give one of the two"))
    return ServerSettings(
        runtime=given["runtime"],
        ray_address=given["ray_address"],
        config=_file(given, "config"),
        host=given["host"],
        port=given["port"],
        api_key=_key(given["api_key"]),
        keys_url=_keys(given["keys"]),
        served_names=_names(given["served_model_name"]),
        cors_origins=given["cors_origin"],
        max_body_bytes=given["max_body_mb"] * MEBI,
        body_timeout=given["body_timeout"],
        request_timeout=given["request_timeout"],
        stop_timeout=given["stop_timeout"],
        processes=given["processes"],
        access_log=_log_file(given["access_log"]),
        open_metrics=given["open_metrics"],
        page=not given["no_page"],
        otel_endpoint=_endpoint(given["otel_endpoint"] or ""),
        verbose=session.verbose,
        ssl_certfile=_file(given, "ssl_certfile"),
        ssl_keyfile=_file(given, "ssl_keyfile"),
    )


def _file(given: dict[str, Any], name: str) -> str:
    if not given[name]:
        return ""
    path = Path(given[name]).expanduser()
    if not path.is_file():
        raise UsageError(_("--{name}: no file {path}").format(name=name, path=given[name]))
    return str(path)


def _log_file(given: str) -> str:
    return given if given in ("-", "off") else str(Path(given).expanduser().absolute())


def _endpoint(given: str) -> str:
    if given and not given.startswith(("http://", "https://")):
        raise UsageError(
            _("--otel_endpoint takes http://HOST:PORT (got {url!r})").format(url=given)
        )
    return given


def _key(given: str | None) -> str:
    from byzerllm.cli.values import read_value

    if given is None:
        return ""
    key = read_value("--api_key", given, "--api_key").strip()
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise UsageError(_("--api_key must be letters, digits and signs of ASCII, without spaces"))
    return key


def _keys(given: str | None) -> str:
    if given is None:
        return ""
    from byzerllm_server.keys.place import read_place

    return read_place(given)


def _names(given: tuple[str, ...]) -> dict[str, str]:
    names: dict[str, str] = {}
    for pair in given:
        name, equals, model = pair.partition("=")
        if not (name and equals and model):
            raise UsageError(
                _("--served_model_name takes NAME=MODEL (got {pair!r})").format(pair=pair)
            )
        names[name] = model
    return names
