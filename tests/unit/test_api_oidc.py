"""Sign-in by an identity provider: which tokens are believed, which role they give, what a provider that is away changes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from deploy.http.callers import ApiRole
from deploy.http.oidc import REFETCH_S, Oidc
from schemas.clock import wall_ms
from schemas.settings import ControllerSection, OidcSection
from tests.support_api import Guarded

ISSUER, AUDIENCE = "https://id.example", "driftline"


class Provider:
    """An identity provider: its keys, what it serves of them, how often it was asked."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.asked = 0
        self.served: bytes | None = self.jwks("rsa", "ec")

    def jwks(self, *names: str) -> bytes:
        known = {
            "rsa": lambda: RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True) | {"kid": "rsa"},
            "ec": lambda: ECAlgorithm.to_jwk(self.ec.public_key(), as_dict=True) | {"kid": "ec"},
        }
        return json.dumps({"keys": [known[name]() for name in names]}).encode()

    def token(self, key: Any = None, kid: str = "rsa", algorithm: str = "RS256", **changes: Any) -> str:
        now = wall_ms() // 1000
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "email": "ann@example.org", "exp": now + 600, "iat": now,
            "roles": ["operator"],
        } | changes  # fmt: skip
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.rsa if key is None else key, algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider()


@pytest.fixture
def url(provider: Provider) -> Iterator[str]:
    """Serves the provider's keys; nothing (500) while ``served`` is None."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.asked += 1
            self.send_response(500 if provider.served is None else 200)
            self.end_headers()
            self.wfile.write(provider.served or b"")

        def log_message(self, *_: object) -> None:
            pass

    provider.served, provider.asked = provider.jwks("rsa", "ec"), 0
    with HTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/keys"
        finally:
            server.shutdown()
            thread.join()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def oidc(url: str, clock: Clock | None = None, **more: Any) -> Oidc:
    section = OidcSection(issuer=ISSUER, audience=AUDIENCE, jwks_url=url, **more)
    return Oidc(section, clock or Clock())


def test_a_token_of_the_provider_is_believed(provider: Provider, url: str) -> None:
    """Name, role and the key to count calls under; RSA and elliptic curves; keys are fetched once."""
    signed_in = oidc(url)
    caller = signed_in.caller(provider.token())
    assert caller is not None
    assert (caller.name, caller.role, caller.via, caller.key) == (
        "ann@example.org",
        ApiRole.OPERATOR,
        "oidc",
        "oidc u-1",
    )
    other = signed_in.caller(provider.token(provider.ec, "ec", "ES256", email=None, sub="u-2"))
    assert other is not None and other.name == "u-2"
    assert provider.asked == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"aud": None},
        {"iss": None},
        {"sub": None},
        {"exp": None},
        {"exp": 1},
        {"nbf": 2**33},
    ],
)
def test_a_token_for_somebody_else_is_not(provider: Provider, url: str, changes: dict[str, Any]) -> None:
    """Another issuer, another audience, one of the past or the future, one without a needed claim."""
    assert oidc(url).caller(provider.token(**changes)) is None


def test_a_token_that_others_signed_is_not(provider: Provider, url: str) -> None:
    """By a stranger's key, by no key, or by the public key taken as a shared secret."""
    signed_in = oidc(url)
    stranger = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    assert signed_in.caller(provider.token(stranger)) is None
    assert signed_in.caller(provider.token(provider.ec, "rsa", "ES256")) is None
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "exp": 2**33, "roles": ["admin"]}
    assert signed_in.caller(jwt.encode(claims, None, "none", headers={"kid": "rsa"})) is None
    pem = provider.rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = part(b'{"alg":"HS256","typ":"JWT","kid":"rsa"}') + b"." + part(json.dumps(claims).encode())
    forged = head + b"." + part(hmac.new(pem, head, hashlib.sha256).digest())
    assert signed_in.caller(forged.decode()) is None
    for garbage in ("..", "a.b.c", "x" * 5_000 + ".y.z", provider.token()[:-4]):
        assert signed_in.caller(garbage) is None


@pytest.mark.parametrize(
    ("claim", "more", "role"),
    [
        ({"roles": ["viewer", "admin"]}, {}, ApiRole.ADMIN),
        ({"roles": "operator"}, {}, ApiRole.OPERATOR),
        ({"roles": []}, {}, ApiRole.NONE),
        ({"roles": None}, {}, ApiRole.NONE),
        ({"roles": {"admin": True}}, {}, ApiRole.NONE),
        ({"roles": ["adminn", "ADMIN"]}, {}, ApiRole.NONE),
        (
            {"access": {"groups": ["sre"]}},
            {"role_claim": "access.groups", "roles": {"operator": ("sre",)}},
            ApiRole.OPERATOR,
        ),
    ],
)
def test_the_claim_gives_the_role(
    provider: Provider, url: str, claim: dict[str, Any], more: dict[str, Any], role: ApiRole
) -> None:
    """The highest of the values known; who has none of them is known and may nothing."""
    caller = oidc(url, **more).caller(provider.token(**claim))
    assert caller is not None and caller.role is role


def test_keys_are_fetched_again_when_they_change_and_not_too_often(provider: Provider, url: str) -> None:
    """A new key is found after the pause; made-up key ids do not make us ask again and again."""
    clock = Clock()
    provider.served = provider.jwks("rsa")
    signed_in = oidc(url, clock)
    assert signed_in.caller(provider.token()) is not None
    provider.served = provider.jwks("rsa", "ec")
    new = provider.token(provider.ec, "ec", "ES256")
    for number in range(20):
        assert signed_in.caller(provider.token(kid=f"made-up-{number}")) is None
    assert signed_in.caller(new) is None and provider.asked == 1
    clock.now_s = REFETCH_S
    assert signed_in.caller(new) is not None and provider.asked == 2


def test_a_provider_that_is_away_locks_nobody_out(provider: Provider, url: str) -> None:
    """Known keys stay in force; without any nobody signs in, until it answers again; nonsense is no set of keys."""
    clock = Clock()
    signed_in = oidc(url, clock)
    provider.served = None
    assert signed_in.caller(provider.token()) is None
    for nonsense in (b"<html>", b"{}", b'{"keys": "x"}', b"[]", b'{"keys": [1]}', b" " * 1_000_001):
        provider.served = nonsense
        clock.now_s += REFETCH_S
        assert signed_in.caller(provider.token()) is None
    provider.served = provider.jwks("rsa")
    clock.now_s += REFETCH_S
    assert signed_in.caller(provider.token()) is not None
    provider.served = None
    clock.now_s += REFETCH_S
    assert signed_in.caller(provider.token(kid="new")) is None
    assert signed_in.caller(provider.token()) is not None


def test_tokens_and_sign_in_stand_side_by_side(provider: Provider, url: str, tmp_path: Path) -> None:
    """The API takes either; a JWT's role is held to the same table."""
    section = OidcSection(issuer=ISSUER, audience=AUDIENCE, jwks_url=url)
    api = Guarded(tmp_path, api_oidc=section)
    path = "/v1/deployments/delay/pause"
    assert api("POST", path, api.text["operator"], json={}).status_code == 202
    assert api("POST", path, provider.token(), json={}).status_code == 202
    assert api("POST", path, provider.token(roles=["viewer"]), json={}).status_code == 403
    assert api("POST", path, provider.token(aud="x"), json={}).status_code == 401
    assert [command.issued_by for command in api.published] == ["api/a-operator", "api/ann@example.org"]
    assert ControllerSection(api_oidc=section).api_oidc == section
