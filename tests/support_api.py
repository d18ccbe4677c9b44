"""The API without a socket, with a token a role and a clock that stands still, for the tests of who may what."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from deploy.controller.view import View
from deploy.http.access import Access
from deploy.http.app import create_app
from deploy.http.callers import RoleName
from deploy.http.tokens import TokenFile
from schemas.contracts import Feature, ModelContract, ModelRecord
from schemas.control import Command
from schemas.settings import ControllerSection

CONTRACT = ModelContract(model="delay", features=(Feature(name="hour"),))
ROLES: tuple[RoleName, ...] = ("viewer", "operator", "admin")


class Guarded:
    """The app with a token a role, a clock that stands still, and what it published."""

    def __init__(self, directory: Path, **section: Any) -> None:
        self.now_s = 0.0
        self.published: list[Command] = []
        self.tokens = TokenFile(directory / "tokens.json")
        self.text = {role: self.tokens.create(f"a-{role}", role, 0)[0] for role in ROLES}
        wanted = {"api_tokens": self.tokens.path, "api_open": "none"} | section
        self.app: Starlette = guarded(ControllerSection(**wanted), self)

    def __call__(
        self, method: str, path: str, token: str | None = None, host: str = "localhost", **more: Any
    ) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        headers |= more.pop("headers", {})

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}:8080") as client:
                return await client.request(method, path, headers=headers, **more)

        return asyncio.run(ask())


def guarded(section: ControllerSection, into: Guarded) -> Starlette:
    state = View()
    state.record(ModelRecord(contract=CONTRACT))
    return create_app(state, into.published.append, Access(section, lambda: into.now_s))
