"""Asks other systems at gates: signed questions over HTTP, bounded in time and number; answers become facts on `control`.

The question is a JSON body, its HMAC-SHA256 in ``X-Driftline-Signature: sha256=<hex>``. The answer is
``{"approved": true | false, "reason": "..."}`` with status 200; 202 says that there is none yet. Everything else, after
``retries_max`` further attempts, is no answer: the gate waits on, is asked again after its interval, and expires.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from deploy.core.gates import configured, gate_id
from schemas.contracts import ModelContract
from schemas.control import Command, Deployment, GateAnswered
from schemas.errors import DriftlineError
from schemas.ids import content_hash
from schemas.observability import Metrics
from schemas.rollout import Gate

log = logging.getLogger(__name__)
SIGNATURE_HEADER = "X-Driftline-Signature"
ANSWER_BYTES_MAX = 65_536
_WORKERS = 4
_OPEN_MAX = 64
_BACKOFF_S = 0.5
_EXPIRES_MS = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class Question:
    """What a gate asks. ``weight``: the share of the traffic the version gets on a yes; ``region``: where, if not everywhere."""

    gate: Gate
    gate_id: str
    model: str
    version: str
    stable: str | None
    step: int
    weight: float
    revision: int
    event_time_ms: int
    region: str = ""

    def body(self) -> bytes:
        """The bytes that are sent and signed."""
        document = {
            "gate": self.gate.kind,
            "gate_id": self.gate_id,
            "model": self.model,
            "version": self.version,
            "stable": self.stable,
            "step": self.step,
            "weight": self.weight,
            "deployment_revision": self.revision,
            "event_time_ms": self.event_time_ms,
        } | ({"region": self.region} if self.region else {})
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def signature(body: bytes, key: str) -> str:
    """The header's value."""
    return "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


def questions(now: Deployment, contract: ModelContract, time_ms: int) -> list[Question]:
    """What is to be asked of other systems as things stand: the gate that waits, and whether to roll back."""
    if now.candidate is None:
        return []
    found = []
    if now.gate is not None and now.gate.webhook and not now.gate.answered:
        gate = configured(contract.rollout, now.gate.kind)
        if gate is not None and gate.webhook == now.gate.webhook:
            found.append((gate, now.gate.gate_id, now.gate.weight, now.gate.region))
    back = configured(contract.rollout, "rollback")
    if back is not None and now.rollout_since_ms is not None:
        found.append((back, gate_id(now, "rollback"), 0.0, ""))
    return [
        Question(
            gate,
            identity,
            now.model,
            now.candidate,
            now.stable,
            now.step,
            weight,
            now.revision,
            time_ms,
            region,
        )
        for gate, identity, weight, region in found
    ]


class Webhooks:
    """Asks each open question once an interval of wall-clock time. ``look`` is called by the controller's thread."""

    def __init__(
        self,
        key: str | None,
        submit: Callable[[Command], None],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = key
        self._submit = submit
        self._metrics = metrics
        self._clock = clock
        self._next_s: dict[str, float] = {}
        self._open: set[str] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pool: ThreadPoolExecutor | None = None

    def look(
        self, states: Iterable[Deployment], contract: Callable[[str], ModelContract | None], time_ms: int
    ) -> None:
        """Ask what is to be asked now."""
        asked: set[str] = set()
        for state in states:
            found = contract(state.model)
            for question in [] if found is None else questions(state, found, time_ms):
                asked.add(question.gate_id)
                self._ask(question)
        for identity in [i for i in self._next_s if i not in asked]:
            del self._next_s[identity]

    def _ask(self, question: Question) -> None:
        identity = question.gate_id
        with self._lock:
            busy = identity in self._open or len(self._open) >= _OPEN_MAX
            if busy or self._clock() < self._next_s.get(identity, 0.0):
                return
            self._open.add(identity)
        self._next_s[identity] = self._clock() + question.gate.interval / 1_000
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="webhook")
        self._pool.submit(self._work, question)

    def _work(self, question: Question) -> None:
        try:
            answer = self._answer(question)
            # A rollback gate is asked all the time: only its yes is a fact worth keeping.
            if question.gate.kind != "rollback" or answer.approved:
                self._submit(answer)
        except DriftlineError as error:
            log.error(
                "the answer at gate %s could not be written, it is asked again: %s", question.gate_id, error
            )
        except Exception:
            self._metrics.count("driftline_errors_total", where="controller: webhook")
            log.exception("gate %s could not be asked", question.gate_id)
        finally:
            with self._lock:
                self._open.discard(question.gate_id)

    def _answer(self, question: Question) -> GateAnswered:
        gate, body = question.gate, question.body()
        if self._key is None:
            return _fact(
                question, None, 0, 1, "no key to sign questions with: set DRIFTLINE_CONTROLLER__WEBHOOK_KEY"
            )
        headers = {"content-type": "application/json", SIGNATURE_HEADER: signature(body, self._key)}
        status, detail, attempt = 0, "", 0
        for attempt in range(1, gate.retries_max + 2):
            try:
                status, approved, detail = _post(str(gate.webhook), body, headers, gate.timeout / 1_000)
            except httpx.HTTPError as error:
                status, approved, detail = 0, None, f"{type(error).__name__}: {error}"
            if approved is not None or status == 202:
                return _fact(question, approved, status, attempt, detail)
            self._metrics.count("driftline_errors_total", where="controller: webhook")
            if attempt <= gate.retries_max and self._stopping.wait(_BACKOFF_S * 2 ** (attempt - 1)):
                break
        return _fact(question, None, status, attempt, detail)

    def close(self) -> None:
        self._stopping.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _post(url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> tuple[int, bool | None, str]:
    """(status, approved, reason) of one attempt; what is longer than allowed or not the answer's form is no answer."""
    until = time.monotonic() + timeout_s
    with httpx.stream(
        "POST", url, content=body, headers=headers, timeout=timeout_s, follow_redirects=False
    ) as got:
        text = b""
        for part in got.iter_bytes():
            text += part
            if time.monotonic() > until:
                return got.status_code, None, f"the answer took longer than {timeout_s:g} s"
            if len(text) > ANSWER_BYTES_MAX:
                return got.status_code, None, f"the answer is longer than {ANSWER_BYTES_MAX} bytes"
        if got.status_code != 200:
            return got.status_code, None, f"status {got.status_code}"
    try:
        said = json.loads(text)
        approved, reason = said["approved"], str(said.get("reason", ""))[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        return 200, None, 'the answer is not {"approved": true | false}'
    return (
        (200, approved, reason)
        if isinstance(approved, bool)
        else (200, None, "approved is neither true nor false")
    )


def _fact(question: Question, approved: bool | None, status: int, attempts: int, detail: str) -> GateAnswered:
    # An answer is one of a kind to its gate; no answer is one at each asking.
    when = "" if approved is not None else f"/{question.event_time_ms}"
    identity = content_hash(f"{question.gate_id}/{approved}{when}".encode())[:24]
    return GateAnswered(
        request_id=f"gate-{identity}",
        model=question.model,
        deployment_revision=question.revision,
        cause="gate",
        event_time_ms=question.event_time_ms,
        expires_ms=question.event_time_ms + _EXPIRES_MS,
        issued_by="controller/webhooks",
        version=question.version,
        gate_id=question.gate_id,
        gate=question.gate.kind,
        approved=approved,
        status=status,
        attempts=attempts,
        detail=detail,
    )
