"""TLS of the API's own, and the refusal to take tokens without any: what is wrong is said before anything listens."""

from __future__ import annotations

import ssl
from pathlib import Path

from deploy.http.access import is_local
from schemas.errors import ConfigurationError
from schemas.settings import ControllerSection


def context_of(section: ControllerSection) -> ssl.SSLContext | None:
    """The context to serve with, TLS 1.2 and newer; None where the API speaks plain HTTP.

    Raises ConfigurationError when a file cannot be used, and when tokens would travel in the clear.
    """
    certificate, key = section.api_certificate_file, section.api_key_file
    if certificate is None or key is None:
        _refuse_tokens_in_the_clear(section)
        return None
    _readable("api_certificate_file", certificate)
    _readable("api_key_file", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Given always: without one OpenSSL would ask at the terminal.
    password = "" if section.api_key_password is None else section.api_key_password.get_secret_value()
    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"controller.api_certificate_file {certificate} and controller.api_key_file {key} cannot be used: "
            f"{error.reason or error}; both must be PEM, belong together, and controller.api_key_password fit the key"
        ) from error
    return context


def _refuse_tokens_in_the_clear(section: ControllerSection) -> None:
    believes = section.api_tokens is not None or section.api_oidc is not None
    if believes and not is_local(section.api_host) and not section.api_behind_tls_proxy:
        raise ConfigurationError(
            f"tokens sent to {section.api_host}:{section.api_port} would travel in the clear: give "
            "controller.api_certificate_file and controller.api_key_file, listen on 127.0.0.1, or, where something before "
            "it speaks TLS, set controller.api_behind_tls_proxy"
        )


def _readable(setting: str, file: Path) -> None:
    try:
        with file.open("rb"):
            return
    except OSError as error:
        raise ConfigurationError(f"controller.{setting} {file} cannot be read: {error.strerror}") from error
