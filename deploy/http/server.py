"""The API on a thread of its own beside the controller's loop, with bounds on connections and on what they may hold up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import uvicorn
from pydantic import SecretStr

from deploy.http.access import Access, is_local
from deploy.http.app import create_app
from deploy.http.callers import ApiRole
from deploy.http.reads import ApiState
from deploy.http.tls import context_of
from schemas.control import Command
from schemas.settings import ControllerSection

log = logging.getLogger(__name__)
CONNECTIONS_MAX = 200
_STOP_S = 5.0


class ApiServer:
    """Listens where ``section`` says, in TLS if it says so. ``start`` and ``stop`` at most once. Raises ConfigurationError."""

    def __init__(
        self, section: ControllerSection, state: ApiState, publish: Callable[[Command], None]
    ) -> None:
        context = context_of(section)
        access = Access(section)
        if access.open_role > ApiRole.VIEWER and not is_local(section.api_host):
            log.warning(
                "whoever reaches %s:%s is %s there: set controller.api_open", section.api_host, section.api_port,
                access.open_role, extra={"event": "api-open"},
            )  # fmt: skip
        config = uvicorn.Config(
            create_app(state, publish, access),
            section.api_host,
            section.api_port,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(_STOP_S) - 1,
            h11_max_incomplete_event_size=32_768,
            ssl_certfile=section.api_certificate_file,
            ssl_keyfile=section.api_key_file,
            ssl_keyfile_password=_text(section.api_key_password),
        )
        config.load()
        # Ours and not the server's own: the floor of versions is set there, and what is wrong has been said.
        config.ssl = context
        self._server = uvicorn.Server(config)
        # Signals are the process's business; a server on a thread cannot have them anyway.
        self._thread = threading.Thread(target=self._server.run, name="api", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOP_S)


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
