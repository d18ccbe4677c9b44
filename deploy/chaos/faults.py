"""Does what the schedule says to real processes, and measures how long each recovery takes.

A quota that fills up is played with the kernel's file-size limit, set on the running process from outside (``prlimit``, no
privileges needed): every write to a file fails until the limit is lifted, as on a full disk, while the disk itself and
everybody else on the machine are left alone. The error is EFBIG and not ENOSPC; the broker treats both as a failed disk
and ends itself. The warehouse's quota is left out: with writes refused in this way the embedded engine commits merged
parts whose files are empty and cannot read its own tables any more, which nobody above it can mend; another way to fill
a directory without privileges, and without filling the machine's disk, was not found.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.chaos.probe import Probe
from deploy.chaos.schedule import Fault
from deploy.local.platform import Platform

_LOOK_S = 0.05
CAUGHT_UP_TIMEOUT_S = 120.0
Say = Callable[[str, str], None]


@dataclass(slots=True)
class Injected:
    """What became of one fault. ``caught_up_s``: from its beginning until the target served as before; None: never
    seen to, or ``left_out`` for the reason given."""

    fault: Fault
    at_s: float = 0.0
    left_out: str = ""
    caught_up_s: float | None = None

    def document(self) -> dict[str, Any]:
        """For the report."""
        return self.fault.document() | {
            "done_at_s": round(self.at_s, 2),
            "left_out": self.left_out or None,
            "caught_up_s": None if self.caught_up_s is None else round(self.caught_up_s, 2),
        }


class Injector:
    """Works off a schedule on its own thread; each recovery is watched on another, so that faults may overlap."""

    def __init__(self, platform: Platform, probe: Probe, clock_file: Path, say: Say) -> None:
        self._platform = platform
        self._probe = probe
        self._clock_file = clock_file
        self._say = say
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._stopped: dict[str, int] = {}
        self.done: list[Injected] = []

    def run(self, faults: Sequence[Fault], began_s: float) -> None:
        """Inject everything; returns when the last fault is over. ``began_s``: the monotonic time of the load's start."""
        for fault in faults:
            if self._over.wait(max(0.0, began_s + fault.at_s - time.monotonic())) or self._platform.failure:
                break
            injected = Injected(fault, time.monotonic() - began_s)
            self.done.append(injected)
            thread = threading.Thread(target=self._inject, args=(injected,), name="fault", daemon=True)
            thread.start()
            self._threads.append(thread)
        for thread in self._threads:
            thread.join()

    def end(self) -> None:
        """Inject nothing more and do not wait for recoveries; processes that were stopped go on."""
        self._over.set()
        for pid in self._stopped.values():
            with suppress(OSError):
                os.kill(pid, signal.SIGCONT)

    def _inject(self, injected: Injected) -> None:
        fault = injected.fault
        target = "monitor" if fault.kind == "clock" else fault.target
        pid = self._platform.pid(target)
        if fault.kind != "clock" and (
            pid is None or not self._platform.ready(target) or target in self._stopped
        ):
            injected.left_out = f"{target} was not up at that moment"
            self._say("chaos", f"left out: {fault} ({injected.left_out})")
            return
        self._say("chaos", str(fault))
        began_s = time.monotonic()
        restarts = self._platform.restarted.get(target, 0)
        if fault.kind == "clock":
            self._step(fault)
        else:
            assert pid is not None
            with suppress(OSError, psutil.Error):
                self._break(fault, pid)
        while not self._over.wait(_LOOK_S) and time.monotonic() - began_s < CAUGHT_UP_TIMEOUT_S:
            again = fault.kind != "kill" or self._platform.restarted.get(target, 0) > restarts
            if again and self._probe.caught_up(target):
                injected.caught_up_s = time.monotonic() - began_s
                return

    def _break(self, fault: Fault, pid: int) -> None:
        match fault.kind:
            case "kill":
                os.kill(pid, signal.SIGKILL)
            case "stop":
                self._stopped[fault.target] = pid
                os.kill(pid, signal.SIGSTOP)
                self._over.wait(fault.seconds)
                self._stopped.pop(fault.target, None)
                os.kill(pid, signal.SIGCONT)
            case "quota":
                process = psutil.Process(pid)
                soft, hard = process.rlimit(psutil.RLIMIT_FSIZE)
                process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
                self._over.wait(fault.seconds)
                process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))

    def _step(self, fault: Fault) -> None:
        self._write_offset(fault.step_ms)
        self._over.wait(fault.seconds)
        self._write_offset(0)

    def _write_offset(self, offset_ms: int) -> None:
        draft = self._clock_file.with_suffix(".new")
        draft.write_text(str(offset_ms))
        draft.replace(self._clock_file)
