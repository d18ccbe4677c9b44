"""The API keeps to its own OpenAPI document, whatever is sent: schemathesis makes the requests up from it."""

from __future__ import annotations

import warnings

import hypothesis
import schemathesis
from hypothesis import HealthCheck

from deploy.http.access import Access
from deploy.http.app import create_app
from schemas.settings import ControllerSection
from tests.unit.test_api import view

APP = create_app(
    view(),
    lambda _command: None,
    Access(
        ControllerSection(api_open="admin", api_host="0.0.0.0", api_reads_per_s=1e9, api_changes_per_s=1e9)
    ),
)
with warnings.catch_warnings():
    # Starlette's test client, which schemathesis uses, asks for a fork of httpx.
    warnings.simplefilter("ignore")
    SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_answer_is_as_documented(case: schemathesis.Case) -> None:
    """Status, media type and content of each answer to right and to wrong requests; never a crash."""
    case.call_and_validate()
