"""The API in TLS of its own: a certificate made here, files that cannot be used, and tokens that must not travel bare."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deploy.commands.asking import call
from deploy.controller.view import View
from deploy.http.server import ApiServer
from deploy.http.tls import context_of
from deploy.local.children import free_port
from schemas.errors import ConfigurationError, PlatformError
from schemas.settings import ControllerSection
from tests.support_tls import pair


@contextmanager
def served(**settings: Any) -> Iterator[int]:
    """The API on a port of this machine, until the block ends."""
    port = free_port()
    server = ApiServer(ControllerSection(api_port=port, **settings), View(), lambda _: None)
    server.start()
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 60).close()
                break
            except ConnectionRefusedError:
                continue
        yield port
    finally:
        server.stop()


def handshake(port: int, ca: Path, newest: ssl.TLSVersion) -> str | None:
    """What a client that knows nothing newer than ``newest`` ends up speaking."""
    context = ssl.create_default_context(cafile=ca)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = newest
    with (
        socket.create_connection(("127.0.0.1", port), 60) as bare,
        context.wrap_socket(bare, server_hostname="127.0.0.1") as secured,
    ):
        return secured.version()


@pytest.mark.parametrize("password", ["", "open sesame"])
def test_the_command_line_calls_it_over_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """With the certificate known it is answered; without, and over plain HTTP, nobody is."""
    files = pair(tmp_path, password)
    with served(**files, **({"api_key_password": password} if password else {})) as port:
        with pytest.raises(PlatformError, match="certificate verify failed"):
            call("GET", f"https://127.0.0.1:{port}/healthz", None)
        with pytest.raises(PlatformError, match="does not answer"):
            call("GET", f"http://127.0.0.1:{port}/healthz", None)
        monkeypatch.setenv("SSL_CERT_FILE", str(files["api_certificate_file"]))
        assert call("GET", f"https://127.0.0.1:{port}/healthz", None) == {"status": "ok"}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_is_older_than_tls_1_2_is_refused(tmp_path: Path) -> None:
    """By the server: the same client is let in with 1.2 and with 1.3."""
    files = pair(tmp_path)
    ca = files["api_certificate_file"]
    with served(**files) as port:
        assert handshake(port, ca, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(port, ca, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(port, ca, ssl.TLSVersion.TLSv1_1)
    context = context_of(ControllerSection(**files))
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("setting", ["api_certificate_file", "api_key_file"])
def test_a_file_that_is_missing_or_no_file_is_named(tmp_path: Path, setting: str) -> None:
    """Before anything listens."""
    files = pair(tmp_path)
    for path, said in ((tmp_path / "nothing", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigurationError, match=f"controller.{setting} .*{said}"):
            ApiServer(ControllerSection(**(files | {setting: path})), View(), lambda _: None)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Another's key, rubbish, a key that is locked (which asks nobody for its password), and one file alone."""
    files, other = pair(tmp_path), pair(tmp_path, name="other")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    locked = pair(tmp_path, "open sesame", "locked")
    for wrong in (
        files | {"api_key_file": other["api_key_file"]},
        files | {"api_key_file": rubbish},
        files | {"api_certificate_file": rubbish},
        locked,
        locked | {"api_key_password": "open barley"},
    ):
        with pytest.raises(ConfigurationError, match="cannot be used") as caught:
            context_of(ControllerSection(**wrong))  # type: ignore[arg-type]
        assert "barley" not in str(caught.value)
    with pytest.raises(ValidationError, match="belong together"):
        ControllerSection(api_key_file=rubbish)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"api_host": "0.0.0.0", "api_tokens": "tokens.json"}, True),
        ({"api_host": "controller.internal", "api_tokens": "tokens.json"}, True),
        (
            {"api_host": "0.0.0.0", "api_oidc": {"issuer": "i", "audience": "a", "jwks_url": "https://i"}},
            True,
        ),
        ({"api_host": "0.0.0.0", "api_tokens": "tokens.json", "api_behind_tls_proxy": True}, False),
        ({"api_host": "127.0.0.1", "api_tokens": "tokens.json"}, False),
        ({"api_host": "::1", "api_tokens": "tokens.json"}, False),
        ({"api_host": "0.0.0.0"}, False),
    ],
)
def test_tokens_do_not_travel_in_the_clear(settings: dict[str, Any], refused: bool, tmp_path: Path) -> None:
    """Unless somebody says that they do not: by a certificate, or by naming the proxy."""
    section = ControllerSection.model_validate(settings)
    if refused:
        with pytest.raises(ConfigurationError, match="would travel in the clear"):
            context_of(section)
        assert context_of(ControllerSection.model_validate(settings | pair(tmp_path))) is not None
    else:
        assert context_of(section) is None
