"""How errors look: one red line on standard error."""

from __future__ import annotations

import traceback

import click

from byzerllm import errors
from byzerllm.cli.i18n import _, language, nearest
from byzerllm.cli.session import session
from byzerllm.errors import ByzerLLMError, UsageError

FAILED = 1
USAGE = 2


def show_error(error: ByzerLLMError) -> int:
    """An error that Byzer-LLM raised on purpose."""
    _say(_with_gist(error))
    remote = error.details.get("remote_traceback")
    if session.debug:
        traceback.print_exception(error)
        if remote:
            session.hint(str(remote))
    elif remote:
        session.hint(_("the worker's traceback: run it again with --debug"))
    return FAILED


def show_usage_error(error: click.ClickException) -> int:
    """A command line that does not parse."""
    _say(_usage_text(error))
    context = getattr(error, "ctx", None)
    if context is not None:
        session.hint(_("see: {command} --help").format(command=context.command_path))
    return USAGE if isinstance(error, click.UsageError) else FAILED


def show_bug(error: BaseException) -> int:
    """An exception that nobody foresaw."""
    _say(
        _("this is a bug in byzerllm: {kind}: {text}").format(kind=type(error).__name__, text=error)
    )
    if session.debug:
        traceback.print_exception(error)
    else:
        session.hint(_("please run it again with --debug and report what it prints"))
    return FAILED


def _with_gist(error: ByzerLLMError) -> str:
    """The message; core speaks English, so in another language the kind of error stands first."""
    # The command line's own errors are plain usage errors, and translated.
    if language() == "en" or type(error) is UsageError:
        return error.message
    gists = _gists()
    kind = next((kind for kind in type(error).__mro__ if kind in gists), None)
    return f"{gists[kind]}: {error.message}" if kind else error.message


def _gists() -> dict[type, str]:
    return {
        errors.ParameterError: _("a parameter is wrong"),
        errors.TemplateError: _("the chat template does not fit"),
        errors.ModelSourceError: _("the model's files cannot be had"),
        errors.NotInstalledError: _("a package is missing"),
        errors.PluginError: _("a plugin cannot be used"),
        errors.ModelNotFoundError: _("no deployment has this name"),
        errors.ModelExistsError: _("the name is taken"),
        errors.CapabilityError: _("the model cannot do this"),
        errors.ResourcesError: _("the cluster has not enough resources"),
        errors.ModelLoadError: _("the model could not be loaded"),
        errors.DeployError: _("the deployment failed; nothing is left behind"),
        errors.ClusterNotFoundError: _("no Ray cluster is there"),
        errors.ClusterAuthenticationError: _("the cluster refuses the token"),
        errors.ClusterError: _("Ray cannot be used"),
        errors.ProtocolError: _("caller and worker have different versions"),
        errors.ContextLengthError: _("the prompt is too long"),
        errors.OverloadedError: _("all workers are busy"),
        errors.WorkerDiedError: _("the workers died"),
        errors.StreamInterruptedError: _("the answer broke off"),
        errors.RequestCancelledError: _("the request was cancelled"),
        errors.RequestTimeoutError: _("no answer came in time"),
        errors.AuthenticationError: _("the vendor does not know the key"),
        errors.PermissionDeniedError: _("the vendor does not allow it"),
        errors.HostedModelNotFoundError: _("the vendor has no such model"),
        errors.RateLimitedError: _("too many requests for the vendor"),
        errors.ProviderError: _("the vendor refused or failed"),
        errors.RequestError: _("the request failed"),
        errors.SandboxError: _("generated code failed"),
    }


def _say(text: str) -> None:
    line = _("error: {text}").format(text=text)
    session.err.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)


def _usage_text(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        known = [n for p in error.ctx.command.params for n in p.opts] if error.ctx else []
        return _("no option {name}{nearest}").format(
            name=error.option_name, nearest=nearest(error.option_name, known)
        )
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return _("{option} is missing").format(option=error.param.opts[0])
    if isinstance(error, click.BadOptionUsage):
        return _bad_option(error)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{error.param.opts[0]}: {error.message}"
    return error.message


def _bad_option(error: click.BadOptionUsage) -> str:
    parameters = error.ctx.command.params if error.ctx else []
    flag = any(
        isinstance(p, click.Option) and p.is_flag and error.option_name in p.opts
        for p in parameters
    )
    text = _("{option} takes no value") if flag else _("{option} needs a value")
    return text.format(option=error.option_name)
