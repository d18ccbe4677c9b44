"""Questions to other systems over real HTTP: signed, bounded, and answered by a fact or by nothing."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deploy.controller.webhooks import SIGNATURE_HEADER, Webhooks
from schemas.control import COMMANDS, Command, Deployment, DeployRequested, GateAnswered
from schemas.errors import PlatformError
from schemas.observability import Metrics
from schemas.rollout import Gate
from tests.support_rollout import Play, rollout_of

KEY = "a key of this test"


class Other:
    """The other system: remembers what it was asked and says what it is told to, one answer after the other."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[dict[str, str], bytes]] = []

    @contextmanager
    def serve(self) -> Iterator[str]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.asked.append((dict(self.headers.items()), body))
                status, answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "http://127.0.0.1:1/elsewhere")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/gate"
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)


def waiting(url: str, **changes: Any) -> tuple[Play, Deployment]:
    """v2 at a gate before the rollout that ``url`` answers."""
    gate = Gate(kind="confirm-rollout", webhook=url, **({"retries_max": 0, "timeout": 60_000} | changes))
    play = Play(rollout_of())
    play.ask(DeployRequested, version="1", steps=())
    play.contract = rollout_of(gates=(gate,))
    play.ask(DeployRequested, version="2")
    assert play.now.gate is not None
    return play, play.now


def ask(state: Deployment, play: Play, key: str | None = KEY) -> GateAnswered:
    """Look once and wait for the fact."""
    facts: queue.Queue[Command] = queue.Queue()
    hooks = Webhooks(key, facts.put, Metrics(), lambda: 0.0)
    try:
        hooks.look([state], lambda _: play.contract, 77)
        fact = facts.get(timeout=120)
        hooks.look([state], lambda _: play.contract, 78)
        assert facts.empty()
    finally:
        hooks.close()
    assert isinstance(fact, GateAnswered)
    return fact


def test_a_question_is_signed_and_its_answer_opens_the_gate() -> None:
    """HMAC-SHA256 over the very bytes of the body; asked once within the interval."""
    other = Other((200, b'{"approved": true, "reason": "change 4711"}'))
    with other.serve() as url:
        play, state = waiting(url)
        fact = ask(state, play)
    assert len(other.asked) == 1
    headers, body = other.asked[0]
    assert headers[SIGNATURE_HEADER] == "sha256=" + hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
    question = json.loads(body)
    assert (question["gate"], question["version"], question["stable"]) == ("confirm-rollout", "2", "1")
    assert (fact.approved, fact.status, fact.attempts, fact.detail) == (True, 200, 1, "change 4711")
    play.send(COMMANDS.validate_json(fact.model_dump_json()))
    assert "2" in play.now.weights


@pytest.mark.parametrize(
    ("status", "answer", "approved"),
    [
        (200, b'{"approved": false}', False),
        (200, b'{"approved": "true"}', None),
        (200, b'{"approved": 1}', None),
        (200, b'{"ok": true}', None),
        (200, b"[true]", None),
        (200, b"yes", None),
        (200, b"", None),
        (200, b'{"approved": true' + b" " * 70_000 + b"}", None),
        (201, b'{"approved": true}', None),
        (302, b'{"approved": true}', None),
        (202, b"", None),
        (500, b'{"approved": true}', None),
    ],
)
def test_only_a_plain_yes_is_a_yes(status: int, answer: bytes, approved: bool | None) -> None:
    """Everything that is not the answer's form is no answer, and no answer never opens a gate."""
    other = Other((status, answer))
    with other.serve() as url:
        play, state = waiting(url)
        assert ask(state, play).approved is approved


@pytest.mark.parametrize(("retries", "approved", "attempts"), [(0, None, 1), (1, True, 2)])
def test_it_is_tried_again_so_many_times(retries: int, approved: bool | None, attempts: int) -> None:
    """``retries_max`` from both sides of what is needed."""
    other = Other((503, b""), (200, b'{"approved": true}'))
    with other.serve() as url:
        play, state = waiting(url, retries_max=retries)
        fact = ask(state, play)
    assert (fact.approved, fact.attempts, len(other.asked)) == (approved, attempts, attempts)


def test_nobody_there_is_no_answer() -> None:
    """A port on which nobody listens."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        play, state = waiting(f"http://127.0.0.1:{deaf.getsockname()[1]}/gate")
        fact = ask(state, play)
    assert (fact.approved, fact.status) == (None, 0)
    assert "ConnectError" in fact.detail


def test_without_a_key_nothing_is_asked() -> None:
    """An unsigned question could be anybody's."""
    other = Other((200, b'{"approved": true}'))
    with other.serve() as url:
        play, state = waiting(url)
        fact = ask(state, play, key=None)
    assert (fact.approved, other.asked) == (None, [])
    assert "WEBHOOK_KEY" in fact.detail


def test_an_answer_that_could_not_be_written_is_asked_for_again() -> None:
    """The broker is away when the answer comes; the gate's interval later it is there."""
    other = Other((200, b'{"approved": true}'))
    facts: queue.Queue[Command] = queue.Queue()
    failed, pause = threading.Event(), threading.Event()
    now_s = 0.0

    def submit(command: Command) -> None:
        if not failed.is_set():
            failed.set()
            raise PlatformError("the broker is away")
        facts.put(command)

    with other.serve() as url:
        play, state = waiting(url, interval=1_000)
        hooks = Webhooks(KEY, submit, Metrics(), lambda: now_s)
        try:
            hooks.look([state], lambda _: play.contract, 77)
            assert failed.wait(60)
            now_s = 1.0
            while facts.empty():
                hooks.look([state], lambda _: play.contract, 77)
                pause.wait(0.01)
        finally:
            hooks.close()
    assert len(other.asked) == 2


def test_the_rollback_gate_is_asked_while_a_version_has_traffic_and_only_its_yes_is_kept() -> None:
    """Its no comes all the time and is no news."""
    other = Other((200, b'{"approved": false}'), (200, b'{"approved": true}'))
    facts: queue.Queue[Command] = queue.Queue()
    with other.serve() as url:
        play = Play(rollout_of(gates=(Gate(kind="rollback", webhook=url, interval=1_000),)))
        play.ask(DeployRequested, version="1", steps=())
        play.ask(DeployRequested, version="2")
        seconds = itertools.count()
        hooks = Webhooks(KEY, facts.put, Metrics(), lambda: float(next(seconds)))
        pause = threading.Event()
        try:
            while facts.empty():
                hooks.look([play.now], lambda _: play.contract, 77)
                pause.wait(0.01)
        finally:
            hooks.close()
    fact = facts.get()
    assert isinstance(fact, GateAnswered) and fact.approved
    play.send(fact)
    assert play.now.weights == {"1": 1.0}
