"""``python -m streams monitor|archive``: one process of the monitoring half, configured by environment and file.

``python -m streams compile`` makes the machine code they need, for the image, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import logging
import sys

from schemas.errors import DriftlineError
from schemas.observability import configure_logs
from schemas.settings import ArchiveSettings, MonitorSettings
from streams.memory import keep_large_buffers

#: Libraries whose own start-up tales would bury the events that matter.
_TALKATIVE = ("faust", "mode", "aiokafka")
#: A batch is tens of thousands of small objects that refer to nothing and die together. At Python's own threshold of 700
#: the collector would look at them, and at all there is, dozens of times a batch: a fifth of the cost of an event.
GC_OBJECTS = 100_000
#: How long a thread that wants to run waits before one that computes has to stop for it. What computes here lets go by itself, each
#: few milliseconds, at the end of a pass over columns; stopped within one, it only finds its caches cold.
SWITCH_S = 0.05


def main(arguments: list[str] | None = None) -> int:
    """Run the named process; its exit code: 0 told to stop, 2 wrong settings, 70 unexpected."""
    parser = argparse.ArgumentParser(prog="python -m streams", description=__doc__)
    parser.add_argument("process", choices=("monitor", "archive", "compile"))
    process = parser.parse_args(arguments).process
    faulthandler.enable()  # a crash in native code leaves its stack in the log
    keep_large_buffers()
    try:
        if process == "compile":
            from streams.warm_up import warm_up

            warm_up("monitor")
            return 0
        return _monitor() if process == "monitor" else _archive()
    except DriftlineError as error:
        print(f"{process}: {error}", file=sys.stderr)  # noqa: T201  # logs may not be set up yet
        return 2


def _monitor() -> int:
    from streams.lookup import LabelIndex
    from streams.monitor import run_monitor
    from streams.sink import ClickHouseSink
    from streams.warm_up import warm_up

    settings = MonitorSettings.load()
    _configure(settings)
    sink = ClickHouseSink(settings.clickhouse) if settings.monitor.warehouse else None
    raw_sink = None
    if settings.monitor.warehouse and settings.clickhouse.raw_log == "monitor":
        raw_sink = ClickHouseSink(settings.clickhouse)
    index = LabelIndex(ClickHouseSink(settings.clickhouse)) if settings.monitor.warehouse else None
    warm_up("monitor")
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 5, 2)
    sys.setswitchinterval(SWITCH_S)
    return asyncio.run(run_monitor(settings, sink=sink, index=index, raw_sink=raw_sink))


def _archive() -> int:
    from streams.archive import run_archive
    from streams.warm_up import warm_up

    settings = ArchiveSettings.load()
    _configure(settings)
    warm_up("archive")
    return run_archive(settings)


def _configure(settings: MonitorSettings | ArchiveSettings) -> None:
    configure_logs(settings)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
