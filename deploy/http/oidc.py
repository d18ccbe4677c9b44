"""Sign-in by an identity provider: a JWT it signed, for this audience, with roles in a claim (OpenID Connect).

Keys come from the provider's JWKS and are fetched again when a token names one that is not known, at most once in
``REFETCH_S``: a stranger's made-up key ids are no way to make the controller hammer the provider. What the keys were
stays in force while the provider is away.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import httpx
import jwt

from deploy.http.callers import ApiRole, Caller
from schemas.settings import OidcSection

log = logging.getLogger(__name__)
#: Signatures by a private key only: with a shared secret (HS256) whoever can check could also sign, ``none`` is no signature.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
REFETCH_S = 30.0
TIMEOUT_S = 5.0
_BYTES_MAX = 1_000_000
_NAME_CHARS_MAX = 100


class Oidc:
    """Checks tokens against the ``section``'s issuer, audience and roles. ``monotonic_s`` paces fetches."""

    def __init__(self, section: OidcSection, monotonic_s: Callable[[], float]) -> None:
        self._section = section
        self._monotonic_s = monotonic_s
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s: float | None = None
        self._lock = threading.Lock()

    def caller(self, text: str) -> Caller | None:
        """Who the token ``text`` says; None when it proves nothing. Blocks while keys are fetched."""
        try:
            key = self._key(str(jwt.get_unverified_header(text).get("kid", "")))
            if key is None:
                return None
            claims = jwt.decode(
                text,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._section.audience,
                issuer=self._section.issuer,
                leeway=self._section.leeway / 1000,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.info("a token was refused: %s", error, extra={"event": "token-refused"})
            return None
        name = str(claims.get(self._section.name_claim) or claims["sub"])[:_NAME_CHARS_MAX]
        return Caller(name, self._role(claims), "oidc", f"oidc {claims['sub']}"[:200])

    def _role(self, claims: dict[str, Any]) -> ApiRole:
        """The highest role that the claim's values stand for."""
        found: Any = claims
        for part in self._section.role_claim.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        values = (
            {found} if isinstance(found, str) else set(map(str, found)) if isinstance(found, list) else set()
        )
        roles = [ApiRole.named(role) for role, names in self._section.roles.items() if values & set(names)]
        return max(roles, default=ApiRole.NONE)

    def _key(self, kid: str) -> jwt.PyJWK | None:
        with self._lock:
            if kid not in self._keys:
                now_s = self._monotonic_s()
                if self._fetched_s is None or now_s - self._fetched_s >= REFETCH_S:
                    self._fetched_s = now_s
                    self._fetch()
            return self._keys.get(kid)

    def _fetch(self) -> None:
        try:
            with httpx.stream("GET", self._section.jwks_url, timeout=TIMEOUT_S) as answer:
                answer.raise_for_status()
                body = b""
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > _BYTES_MAX:
                        raise ValueError(f"more than {_BYTES_MAX} bytes")
            document = json.loads(body)
            if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
                raise ValueError("not a set of keys")
            keys = jwt.PyJWKSet([key for key in document["keys"] if isinstance(key, dict)]).keys
        except (httpx.HTTPError, jwt.PyJWTError, ValueError) as error:
            log.error(
                "keys of %s cannot be read: %s",
                self._section.jwks_url,
                error,
                extra={"event": "jwks-unreadable"},
            )
            return
        self._keys = {key.key_id or "": key for key in keys}
