"""Why: every demonstration needs the same stage: a platform of its own, a terminal, a report, an honest exit status."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from deploy.demo.terminal import Story
from deploy.local.platform import Platform
from schemas.errors import DriftlineError


class Setting(Protocol):
    """What is asked for of a stage. ``data_dir`` None: a directory that is removed unless ``keep``."""

    @property
    def data_dir(self) -> Path | None: ...
    @property
    def keep(self) -> bool: ...
    @property
    def report(self) -> Path: ...
    @property
    def api_port(self) -> int: ...
    @property
    def input_partitions(self) -> int: ...


class Report(Protocol):
    """What a play leaves: ``failures`` is empty only if all went as it should."""

    failures: list[str]

    def document(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Report)


def paced(span_ms: int) -> dict[str, str]:
    """Settings of a platform whose time is that of a replay which runs ``span_ms`` ahead: planned changes of traffic take
    effect that much later."""
    return {
        "DRIFTLINE_MONITOR__TICKER": "off",
        "DRIFTLINE_MONITOR__COMMIT_INTERVAL": "100",
        "DRIFTLINE_CONTROLLER__ACTIVATION_DELAY": str(span_ms),
        "DRIFTLINE_SCORER__SHADOW": "with",
        "DRIFTLINE_NOTIFIER__CONSOLE": "true",
    }


def perform(
    setting: Setting,
    console: Console,
    span_ms: int,
    play: Callable[[Platform, Story], R],
    show: Callable[[R, Console], None],
) -> int:
    """Start a platform paced by event time, let ``play`` run on it, ``show`` and write its report.

    ``span_ms``: how far the play's replay runs ahead. Returns the exit status: 0 only without failures.
    """
    own = setting.data_dir is None
    data_dir = setting.data_dir or Path(tempfile.mkdtemp(prefix="driftline-demo-"))
    story = Story(console)
    platform = Platform(
        data_dir,
        api_port=setting.api_port,
        input_partitions=setting.input_partitions,
        environment=paced(span_ms),
        say=story.service,
    )
    try:
        with platform:
            report = play(platform, story)
        show(report, console)
        setting.report.write_text(json.dumps(report.document(), indent=1) + "\n")
        console.print(f"\nThe whole report: {setting.report}")
        for failure in report.failures:
            console.print(f"[red]FAILED[/red] {failure}")
        return 1 if report.failures else 0
    except DriftlineError as error:
        story.close()
        console.print(f"[red]{error}[/red]", highlight=False)
        console.print(f"Logs are kept in {data_dir / 'logs'}", highlight=False)
        own = False
        return 1
    finally:
        story.close()
        if own and not setting.keep:
            shutil.rmtree(data_dir, ignore_errors=True)
