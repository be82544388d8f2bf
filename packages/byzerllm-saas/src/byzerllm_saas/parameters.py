"""Parameters that every vendor takes in `infer_params`, with or without the prefix `saas.`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from byzerllm.backend import Parameters
from byzerllm.requests import Task

_FALSE = frozenset({"false", "no", "off", "0"})
_TRUE = frozenset({"true", "yes", "on", "1", ""})


def refused(reason: str) -> PydanticCustomError:
    """What a validator raises; the reason becomes a ParameterError as it is."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason})


def _split(value: Any) -> Any:
    return re.split(r"[\s,;]+", value.strip(" \t\r\n,;")) if isinstance(value, str) else value


def _switch_or_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    lowered = value.strip().lower()
    return False if lowered in _FALSE else True if lowered in _TRUE else value.strip()


SecretList = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]
"""Several secrets: a list, or one text with commas."""


def check_url(value: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """A URL with a scheme and a host, without the slash at its end.

    Raises:
        PydanticCustomError: says what is missing.
    """
    allowed = " or ".join(f"{scheme}://" for scheme in schemes)
    parts = urlsplit(value)
    if parts.scheme not in schemes or not parts.hostname:
        raise refused(f"a URL that begins with {allowed} is needed (got {_without_login(value)!r})")
    return value.rstrip("/")


def _without_login(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//******@", url)


class SaasParameters(Parameters):
    """What every hosted deployment can be told. Times in seconds.

    A vendor's subclass gives `model` and `base_url` their defaults and adds what is its own.
    """

    # Of a dozen vendors one or two are used: their schemas are built on first use.
    model_config = ConfigDict(defer_build=True)
    prefixes: ClassVar[tuple[str, ...]] = ("saas.",)

    model: str = Field("", description="the vendor's name of the model")
    base_url: str = Field("", description="address of the vendor's API")
    task: Task | None = Field(
        None, description="what the model does; by default its name says so, else it is chat"
    )
    # Hidden, because it may hold a login.
    proxies: str = Field(
        "",
        repr=False,
        description="address of the HTTP proxy; by default that of the environment (HTTPS_PROXY)",
    )
    local_address: str = Field("", description="address of this machine that connections start at")
    verify: Annotated[bool | str, BeforeValidator(_switch_or_path)] = Field(
        True, description="check certificates: true, false, or the path of a CA bundle"
    )
    connect_timeout: float = Field(10.0, gt=0, description="seconds until a connection must stand")
    read_timeout: float = Field(300.0, gt=0, description="longest silence in seconds")
    total_timeout: float = Field(
        0.0,
        ge=0,
        description="seconds that one call may take; 0: no limit of its own",
    )
    rpm: int = Field(0, ge=0, description="requests per minute of the deployment; 0: no limit")
    tpm: int = Field(0, ge=0, description="tokens per minute of the deployment; 0: no limit")
    rate_wait: float = Field(
        60.0, ge=0, description="longest wait for rpm and tpm in seconds; 0 refuses at once"
    )

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        return check_url(value) if value else value

    @field_validator("proxies", mode="before")
    @classmethod
    def _one_proxy(cls, value: Any) -> Any:
        """Also a mapping of schemes to addresses, as `requests` takes it."""
        if isinstance(value, dict):
            value = value.get("https") or value.get("https://") or value.get("http")
        return check_url(value) if value and isinstance(value, str) else value or ""

    @field_validator("local_address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        import ipaddress

        if value:
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise refused(f"an IP address of this machine is needed (got {value!r})") from None
        return value


class KeyParameters(SaasParameters):
    """Of a vendor whose calls carry a key.

    Class attributes:
        key_variable: where people keep the vendor's key, for the error about a missing one.
    """

    key_variable: ClassVar[str] = "API_KEY"

    api_keys: SecretList = Field(
        (), description="several keys, used in turn", validate_default=True
    )
    api_key_file: str = Field(
        "", description="a file on the worker's node that holds the key, or one key per line"
    )
    api_key: SecretStr | None = Field(
        None, description="the account's key; ${NAME} takes it from the environment",
        validate_default=True,
    )  # fmt: skip

    @field_validator("api_key")
    @classmethod
    def _is_given(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            if not value.get_secret_value().strip():
                raise refused(f"the key is empty; is {cls.key_variable} set where you deploy?")
            return value
        if not info.data.get("api_keys") and not info.data.get("api_key_file"):
            raise refused(
                f"no key is given; pass saas.api_key='${{{cls.key_variable}}}', which takes it "
                "from the environment, or saas.api_keys, or saas.api_key_file"
            )
        return value

    def keys(self) -> list[str]:
        """Every key, each once; reads the file.

        Raises:
            ParameterError: the file cannot be read or is empty.
        """
        given = [*([self.api_key] if self.api_key else []), *self.api_keys]
        texts = [secret.get_secret_value().strip() for secret in given]
        if self.api_key_file:
            texts += _keys_in(self.api_key_file)
        return list(dict.fromkeys(text for text in texts if text))


def _keys_in(name: str) -> list[str]:
    from byzerllm.errors import ParameterError

    try:
        keys = Path(name).expanduser().read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ParameterError.invalid(
            "saas.api_key_file", f"cannot read {name!r}: {reason}", where="a provider"
        ) from None
    if not keys:
        raise ParameterError.invalid(
            "saas.api_key_file", f"{name!r} holds no key", where="a provider"
        )
    return keys
