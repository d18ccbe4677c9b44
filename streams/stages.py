"""The stages an event passes, each with what it reads and the core that does its work. The order is the event's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from streams.core.delivery import StageContext, TaskCore


@dataclass(frozen=True, slots=True)
class Stage:
    """``inputs`` share partitions: task p reads p of each. ``follows``: broadcast topics the core gets as records. ``paced_by``: a stage
    before this one, which is as far behind as that is, however new what it reads."""

    name: str
    inputs: tuple[str, ...]
    create: Callable[[StageContext], TaskCore]
    follows: tuple[str, ...] = ()
    ticked: bool = False
    paced_by: str | None = None


def _from(module: str) -> Callable[[StageContext], TaskCore]:
    def create(context: StageContext) -> TaskCore:
        core: TaskCore = import_module(module).create(context)
        return core

    return create


#: Imported late: a process that runs other stages (a test, a later split) loads no detectors.
MONITOR_STAGES = (
    Stage("join", ("predictions", "feedback"), _from("streams.core.pipeline"), ticked=True),
    Stage("detect", ("observations",), _from("streams.core.detect"), paced_by="join"),
    Stage("policy", ("signals",), _from("streams.core.policy"), follows=("deployments",)),
)
