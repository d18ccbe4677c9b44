"""The settings of the deployment controller and of its HTTP API: where it listens, how, and whom it believes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from schemas.contracts import DurationMs
from schemas.section import Section
from schemas.stores import RegistryAddress


class OidcSection(Section):
    """An identity provider whose tokens (JWT) the API believes."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1, description="This API's name at the provider.")
    jwks_url: str = Field(pattern=r"^https?://", description="Where the provider's public keys are.")
    role_claim: str = Field(default="roles", description="Claim with the caller's groups; dots go deeper.")
    name_claim: str = Field(
        default="email", description="Claim with the caller's name; `sub` if it is missing."
    )
    roles: dict[Literal["viewer", "operator", "admin"], tuple[str, ...]] = Field(
        default={"viewer": ("viewer",), "operator": ("operator",), "admin": ("admin",)},
        description="Role here to the claim's values that stand for it; the highest counts.",
    )
    leeway: DurationMs = Field(default=30_000, description="By how much clocks may differ.")


class ControllerSection(Section):
    """The deployment controller and its HTTP API."""

    registry: RegistryAddress = Path("registry")
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8080, ge=0, le=65535, description="0 turns the HTTP API off.")
    api_certificate_file: Path | None = Field(
        default=None, description="PEM, with the authorities between: the API speaks TLS, 1.2 and newer."
    )
    api_key_file: Path | None = Field(default=None, description="The certificate's private key, PEM.")
    api_key_password: SecretStr | None = None
    api_behind_tls_proxy: bool = Field(
        default=False,
        description="Plain HTTP on an address that others reach is meant: whatever stands before it speaks TLS.",
    )
    api_tokens: Path | None = Field(
        default=None, description="File of hashed bearer tokens; `driftline tokens create` writes it."
    )
    api_oidc: OidcSection | None = Field(default=None, description="Sign-in by an identity provider.")
    api_open: Literal["none", "viewer", "operator", "admin"] | None = Field(
        default=None,
        description="What callers may who show nothing. Not given: admin where only this machine can call and neither "
        "tokens nor OIDC are set up, else viewer.",
    )
    api_reads_per_s: float = Field(default=50, gt=0, description="Reading calls of one caller, on average.")
    api_changes_per_s: float = Field(
        default=2, gt=0, description="Calls of one caller that change something."
    )
    webhook_key: SecretStr | None = Field(
        default=None, description="Signs the questions to webhooks of gates (HMAC-SHA256)."
    )
    archive_timeout: DurationMs = Field(
        default=60_000, description="Longest wait for the archive before a measurement is an error."
    )
    activation_delay: DurationMs = Field(
        default=0,
        description="Planned changes take effect this much event time later; a paced replay sets its span here, so "
        "that what is scored by which version does not depend on the machine's speed.",
    )

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.api_certificate_file is None) != (self.api_key_file is None):
            raise ValueError("api_certificate_file and api_key_file belong together")
        return self
