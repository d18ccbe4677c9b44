"""Why: Kafka runs from Maven jars, and what we execute must be exactly what was reviewed.

``jars.sha256`` beside this file names each jar (digest, size, Maven coordinate). A jar that is missing or cut
short is fetched (anew); one whose content differs is an error, never silently replaced. After one full check a
stamp with sizes and modification times makes later starts cheap: no network, no hashing.

``python -m deploy.local.jars`` fetches and checks everything; with ``--relock`` it resolves the coordinates
again with jgo and prints a new list.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from deploy.local.cache import cache_dir
from schemas.errors import PlatformError

KAFKA_VERSION = "4.3.1"
#: kafka-clients is pinned by hand: the resolver alone picks an older one for a transitive dependency.
COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
    "org.apache.logging.log4j:log4j-core:2.25.2",
    "org.apache.logging.log4j:log4j-slf4j2-impl:2.25.2",
)
LOCK_FILE = Path(__file__).with_name("jars.sha256")
FETCH_ATTEMPTS_MAX = 4
FETCH_TIMEOUT_S = 30.0
_STAMP = ".verified.json"

Progress = Callable[[int, int, str], None]
"""Called as (jars done, jars in all, file name), from any thread."""

Fetch = Callable[["Jar", Path], None]
"""Puts one jar's bytes into a file; raises ``OSError`` when it cannot."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the list: what the file must be, and where Maven repositories keep it."""

    sha256: str
    size_bytes: int
    group: str
    artifact: str
    version: str

    @property
    def name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def repository_path(self) -> str:
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.name}"


def read_lock(text: str) -> list[Jar]:
    """Parse the jar list. Raises :class:`PlatformError` on a line that is not ``sha256 size group:artifact:version``."""
    jars: list[Jar] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            digest, size, coordinate = line.split()
            group, artifact, version = coordinate.split(":")
            jar = Jar(digest, int(size), group, artifact, version)
        except ValueError:
            raise PlatformError(
                f"jar list line {number} is malformed: {line!r}; restore deploy/local/jars.sha256"
            ) from None
        if len(digest) != 64 or jar.size_bytes <= 0:
            raise PlatformError(
                f"jar list line {number} has no valid digest or size; restore deploy/local/jars.sha256"
            )
        jars.append(jar)
    if len({jar.name for jar in jars}) != len(jars):
        raise PlatformError("the jar list names a file twice; restore deploy/local/jars.sha256")
    return jars


def kafka_classpath(
    *,
    root: Path | None = None,
    jars: Sequence[Jar] | None = None,
    fetch: Fetch | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """The verified Kafka jars in list order, fetched when missing.

    Safe for processes that start at the same time: one fetches, the others wait for its lock.
    Raises :class:`PlatformError` for an altered or unexpected jar, or when a download keeps failing.
    """
    wanted = list(jars) if jars is not None else read_lock(LOCK_FILE.read_text(encoding="utf-8"))
    folder = (root or cache_dir()) / f"kafka-{KAFKA_VERSION}"
    if not _stamp_holds(folder, wanted):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder.parent / f"{folder.name}.lock"):
                _complete(folder, wanted, fetch or _fetch, progress or (lambda done, total, name: None))
        except OSError as error:
            raise PlatformError(
                f"cannot write the jar cache {folder}: {error}; free the disk or set DRIFTLINE_CACHE"
            ) from error
    return [folder / jar.name for jar in wanted]


def _complete(folder: Path, wanted: Sequence[Jar], fetch: Fetch, progress: Progress) -> None:
    _refuse_unexpected(folder, wanted)
    missing = [jar for jar in wanted if not _present(folder / jar.name, jar)]
    done = len(wanted) - len(missing)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for jar in pool.map(lambda each: _obtain(folder, each, fetch), missing):
            done += 1
            progress(done, len(wanted), jar.name)
    stamp = {"list": _list_digest(wanted), "files": _fingerprint(folder, wanted)}
    _write_atomically(folder / _STAMP, json.dumps(stamp).encode())


def _refuse_unexpected(folder: Path, wanted: Sequence[Jar]) -> None:
    unexpected = {path.name for path in folder.glob("*.jar")} - {jar.name for jar in wanted}
    if unexpected:
        raise PlatformError(
            f"unexpected jar in {folder}: {', '.join(sorted(unexpected))}; remove it and start again"
        )


def _present(path: Path, jar: Jar) -> bool:
    """True if the file is the jar, False if it must be fetched. Raises :class:`PlatformError` if it was altered."""
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        return False
    if size_bytes < jar.size_bytes:  # cut short by a crash or a full disk: not an attack, fetch it anew
        return False
    found = _sha256(path)
    if found != jar.sha256:
        raise PlatformError(
            f"altered jar {path}: SHA-256 is {found}, the committed list says {jar.sha256}; "
            "find out who changed it, then remove the file and start again"
        )
    return True


def _obtain(folder: Path, jar: Jar, fetch: Fetch) -> Jar:
    reason = ""
    for _ in range(FETCH_ATTEMPTS_MAX):
        handle, name = tempfile.mkstemp(prefix=jar.artifact, suffix=".part", dir=folder)
        os.close(handle)
        part = Path(name)
        try:
            fetch(jar, part)
            found = _sha256(part)
            if found == jar.sha256:
                part.chmod(0o644)
                part.replace(folder / jar.name)
                return jar
            reason = f"SHA-256 of what came is {found}, the committed list says {jar.sha256}"
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        finally:
            part.unlink(missing_ok=True)
    raise PlatformError(
        f"could not fetch {jar.name} in {FETCH_ATTEMPTS_MAX} attempts: {reason}; check the network "
        "(jars already fetched are kept) or set DRIFTLINE_MAVEN_URL to a mirror"
    )


def _fetch(jar: Jar, target: Path) -> None:
    """From the local Maven repository if it has the right file, else from the remote one."""
    local = Path(os.environ.get("M2_REPO", str(Path.home() / ".m2" / "repository"))) / jar.repository_path
    with suppress(OSError):
        if _sha256(local) == jar.sha256:
            target.write_bytes(local.read_bytes())
            return
    from jgo.constants import MAVEN_CENTRAL_URL  # the one place that knows the public repository's address

    base = os.environ.get("DRIFTLINE_MAVEN_URL", MAVEN_CENTRAL_URL).rstrip("/")
    request = urllib.request.Request(f"{base}/{jar.repository_path}", headers={"User-Agent": "driftline"})
    with urllib.request.urlopen(request, timeout=FETCH_TIMEOUT_S) as response, target.open("wb") as out:
        remaining = jar.size_bytes + 1  # one byte more than expected is enough to know it is wrong
        while remaining > 0 and (chunk := response.read(min(1 << 16, remaining))):
            out.write(chunk)
            remaining -= len(chunk)


def _stamp_holds(folder: Path, wanted: Sequence[Jar]) -> bool:
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        names = {path.name for path in folder.glob("*.jar")}
        return bool(
            names == {jar.name for jar in wanted}
            and stamp["list"] == _list_digest(wanted)
            and stamp["files"] == _fingerprint(folder, wanted)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint(folder: Path, wanted: Sequence[Jar]) -> dict[str, list[int]]:
    states = {jar.name: (folder / jar.name).stat() for jar in wanted}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def _list_digest(wanted: Sequence[Jar]) -> str:
    return hashlib.sha256("".join(f"{jar.sha256}{jar.name}\n" for jar in wanted).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def relock() -> str:
    """Resolve :data:`COORDINATES` with jgo and return a new list. Needs the network; a maintainer's tool."""
    from jgo.env import EnvironmentBuilder, LinkStrategy
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "m2"
        builder = EnvironmentBuilder(
            context=MavenContext(repo_cache=repository),
            cache_dir=Path(scratch) / "env",
            link_strategy=LinkStrategy.HARD,
        )
        names = {path.name for path in builder.from_endpoint("+".join(COORDINATES)).all_jars}
        lines = []
        for path in repository.rglob("*.jar"):
            if path.name in names:
                group = ".".join(path.relative_to(repository).parts[:-3])
                coordinate = f"{group}:{path.parts[-3]}:{path.parts[-2]}"
                lines.append((coordinate, f"{_sha256(path)} {path.stat().st_size} {coordinate}"))
    head = "# sha256 size_bytes group:artifact:version; made by: python -m deploy.local.jars --relock\n"
    return head + "".join(f"{line}\n" for _, line in sorted(lines))


def print_progress(done: int, total: int, name: str) -> None:
    """One line that overwrites itself on a terminal; every tenth jar elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[Kkafka jars {done}/{total} {name}" + ("\n" if done == total else ""))
    elif done % 10 == 0 or done == total:
        sys.stderr.write(f"kafka jars {done}/{total}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    if "--relock" in sys.argv[1:]:
        sys.stdout.write(relock())
    else:
        sys.stdout.write(
            os.pathsep.join(str(path) for path in kafka_classpath(progress=print_progress)) + "\n"
        )
