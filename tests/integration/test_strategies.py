"""Every strategy on real flights, a good and a bad candidate each, side by side on one platform with the shipped services.

What is asserted is read here from the committed topics: the revisions on `deployments`, the answers in the prediction log.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from rich.console import Console

from deploy.broadcast import Broadcast
from deploy.core.routing import caller_unit
from deploy.demo.rollouts import SPAN_MS, RolloutOptions, play, prepare
from deploy.demo.stage import paced
from deploy.demo.terminal import Story
from deploy.demo.trials import CANDIDATE, QUALITIES, STABLE, STRATEGIES, Trial
from deploy.demo.verdicts import RolloutReport
from deploy.local.platform import Platform
from schemas.control import Deployment, Phase
from schemas.events import HEADER_KIND
from schemas.settings import KafkaSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
#: A dark launch compares nothing, so one candidate shows it.
TRIALS = tuple(
    Trial(strategy, candidate)
    for strategy in STRATEGIES
    for candidate in QUALITIES
    if (strategy, candidate) != ("dark", "good")
)
#: The candidate's share from revision to revision, repetitions left out.
WALKS = {
    ("canary", "good"): [0.05, 0.25, 1.0],
    ("canary", "bad"): [0.05, 0.0],
    ("shadow", "good"): [0.0, 1.0],
    ("shadow", "bad"): [0.0],
    ("blue-green", "good"): [0.1, 1.0],
    ("blue-green", "bad"): [0.1, 0.0],
    ("ab", "good"): [0.5, 1.0],
    ("ab", "bad"): [0.5, 0.0],
    ("dark", "bad"): [0.0],
}


@dataclass
class Played:
    """What was committed: revisions by model; (model, version, role, flight) of every prediction in the log."""

    report: RolloutReport
    revisions: dict[str, list[Deployment]] = field(default_factory=dict)
    log: list[tuple[str, str, str, str]] = field(default_factory=list)

    def given(self, model: str) -> list[str]:
        """Flights that the candidate answered."""
        return [
            flight for name, version, role, flight in self.log
            if (name, version) == (model, CANDIDATE) and role != "shadow"
        ]  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All trials, on half of the flights."""
    options = RolloutOptions(TRIALS, sample=0.5)
    flights, trained = prepare(options)
    output = io.StringIO()
    story = Story(Console(file=output, width=160))
    place = tmp_path_factory.mktemp("strategies")
    with Platform(place, input_partitions=2, environment=paced(SPAN_MS)) as platform:
        found = Played(play(options, platform, flights, trained, story))
        with Broadcast(platform.kafka, ["deployments"]) as deployments:
            for message in deployments.read_to_end():
                revision = Deployment.model_validate_json(message.value() or b"")
                found.revisions.setdefault(revision.model, []).append(revision)
        found.log = _log(platform.kafka)
    print(output.getvalue())
    return found


def _log(kafka: KafkaSettings) -> list[tuple[str, str, str, str]]:
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    name = kafka.topic("predictions")
    consumer.assign([TopicPartition(name, partition, 0) for partition in range(kafka.input_partitions)])
    rows, ended = [], 0
    while ended < kafka.input_partitions:
        for message in consumer.consume(20_000, 10.0):
            if (error := message.error()) is not None:
                assert error.code() == KafkaError._PARTITION_EOF
                ended += 1
            elif HEADER_KIND not in dict(message.headers() or ()):
                row = json.loads(message.value() or b"")
                rows.append((row["model"], row["version"], row["role"], row["entity"]))
    consumer.close()
    return rows


def named(trial: Trial) -> str:
    return trial.model


@pytest.mark.parametrize("trial", TRIALS, ids=named)
def test_a_good_candidate_takes_over_and_a_bad_one_never_gets_past_its_first_step(
    trial: Trial, played: Played
) -> None:
    """The whole walk of the candidate's share, and where it ended."""
    revisions = played.revisions[trial.model]
    shares = [now.weights.get(CANDIDATE, 0.0) for now in revisions if now.stable and _entered(now)]
    walk = [share for at, share in enumerate(shares) if at == 0 or shares[at - 1] != share]
    assert walk == WALKS[trial.strategy, trial.candidate]
    last = revisions[-1]
    promoted = trial.expected == "promoted"
    assert last.weights == {CANDIDATE if promoted else STABLE: 1.0}
    assert last.phase is (Phase.ROLLED_BACK if trial.expected == "rolled-back" else Phase.SUCCEEDED)
    assert (CANDIDATE in last.tripped) is (trial.expected == "rolled-back")
    # The loser stays loaded: the way back is instant.
    assert last.warm == (STABLE if promoted else CANDIDATE,)
    assert all(abs(sum(now.weights.values()) - 1) < 1e-9 for now in revisions if now.stable)


def _entered(now: Deployment) -> bool:
    """Whether the candidate's first step had begun."""
    return now.rollout_since_ms is not None or CANDIDATE in (now.stable, *now.tripped, *now.warm)


@pytest.mark.parametrize("trial", [t for t in TRIALS if t.expected != "promoted"], ids=named)
def test_what_a_rejected_candidate_answered_was_its_step_and_no_more(trial: Trial, played: Played) -> None:
    """In the prediction log: only callers of its share, about as many as the share says, and none without traffic."""
    step = max(WALKS[trial.strategy, trial.candidate])
    given = played.given(trial.model)
    assert all(caller_unit(trial.model, flight) < step for flight in given)
    if step == 0:
        assert given == []
        return
    (result,) = [r for r in played.report.results if r.trial == trial]
    (share,) = [s for s in result.traffic.shares if s.weight == step]
    assert len(given) == share.given
    chance = 5 * (share.answers * step * (1 - step)) ** 0.5
    assert 0 < share.given < share.answers * step + chance


@pytest.mark.parametrize("trial", TRIALS, ids=named)
def test_every_request_has_one_answer(trial: Trial, played: Played) -> None:
    """In the log: each flight once in an answering role, whatever happened to the traffic meanwhile."""
    flights = [flight for name, _, role, flight in played.log if name == trial.model and role != "shadow"]
    assert len(flights) == len(set(flights)) == played.report.figures["requests"] / len(TRIALS)


def test_the_commands_own_verdict_agrees(played: Played) -> None:
    """What decides the exit status found nothing to complain about."""
    assert played.report.failures == []
    assert [r.end for r in played.report.results] == [trial.expected for trial in TRIALS]
