"""What others do on the same topic: read it, and parse the JSON or open the batches. Their CPU-seconds, from the first event to the last.

Quix Streams and Bytewax have an environment of their own (``requirements/peers.txt``), made beside this one at first use:
their dependencies are not ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from schemas.settings import KafkaSettings
from tests.bench.monitor.load import Load

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = ROOT / ".venv-peers"
#: The peer, its script, whether it has an environment of its own, of how many events it is asked for at most.
JSON_PEERS = (
    ("aiokafka", "aiokafka_raw", False, None),
    ("faust", "faust_agent", False, 100_000),
    ("quix", "quix_streams", True, None),
    ("bytewax", "bytewax_flow", True, None),
)
#: Of Arrow batches: what nobody can do without.
ARROW_PEERS = (("pyarrow", "arrow_columns", False, None),)
Peers = Sequence[tuple[str, str, bool, int | None]]


def measure(kafka: KafkaSettings, load: Load, peers: Peers) -> Iterator[tuple[str, float]]:
    """(name, events per CPU-second) of each."""
    for name, file, foreign, most in peers:
        events = min(load.events, most or load.events)
        python = str(_environment()) if foreign else sys.executable
        script = Path(__file__).parent / "peer" / f"{file}.py"
        command = [python, str(script), kafka.bootstrap, kafka.topic("predictions"), str(events)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=900, check=False, cwd=script.parent
        )
        # Some print more than their figure.
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
        said = json.loads(lines[-1])
        yield f"peer.{name}", said["events"] / said["cpu_s"]


def _environment() -> Path:
    """The peers' Python."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, ENVIRONMENT], check=True)
        locked = ROOT / "requirements" / "peers.txt"
        install = [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", locked]
        subprocess.run(install, check=True)
    return python
