"""Which versions must not be deleted is known by the deployments alone: all their revisions that the topic still holds."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.broadcast import Broadcast
from schemas.control import Deployment
from schemas.errors import PlatformError
from schemas.settings import KafkaSettings


def versions_in_use(kafka: KafkaSettings, model: str, targets: int) -> dict[str, str]:
    """By version why it is in use. Raises PlatformError when the deployments cannot be read: then nothing may go."""
    revisions = []
    with Broadcast(kafka, ["deployments"]) as topic:
        for message in topic.read_to_end():
            value = message.value()
            if value is None or (message.key() or b"").decode(errors="replace") != model:
                continue
            try:
                revisions.append(Deployment.model_validate_json(value))
            except ValueError as error:
                raise PlatformError(
                    f"a deployment of {model} cannot be read, so nothing may be deleted: {error}"
                ) from error
    return in_use(revisions, targets)


def in_use(revisions: Sequence[Deployment], targets: int) -> dict[str, str]:
    """Why versions are in use, from a model's deployments in the order they were written: what the newest names, and
    the last ``targets`` that were stable."""
    if not revisions:
        return {}
    newest = revisions[-1]
    found: dict[str, str] = {}
    stable: list[str] = []
    for revision in reversed(revisions):
        if revision.stable is not None and revision.stable not in stable:
            stable.append(revision.stable)
    found.update((version, "was stable: a rollback target") for version in stable[:targets])
    found.update((proven.version, "proven: a rollback target") for proven in newest.proven)
    found.update((version, "kept warm") for version in newest.warm)
    found.update((version, "shadow") for version in newest.shadow)
    if newest.previous is not None:
        found[newest.previous] = "rollback target"
    found.update((version, "has traffic") for version in newest.answering)
    if newest.candidate is not None:
        found[newest.candidate] = "candidate of a rollout"
    if newest.stable is not None:
        found[newest.stable] = "stable: deployed"
    return found
