"""One tree of errors, so that a caller can catch by meaning and every message says what, where and what to do."""

from __future__ import annotations


class DriftlineError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigurationError(DriftlineError):
    """A setting, contract or command line is wrong; the operator can mend it."""


class ContractError(ConfigurationError):
    """A model contract or monitoring configuration contradicts itself."""


class PlatformError(DriftlineError):
    """The local Kafka, warehouse or a service process could not be started or died."""


class BrokerError(PlatformError):
    """No Kafka broker answered in time, or none took what it was given. Services sit it out (``deploy.outage``)."""


class BadMessage(DriftlineError):
    """A message that cannot be used. It goes to ``dead-letters`` with its address and this reason; never an outage.

    ``reason`` is one of the closed list :data:`schemas.events.REJECTIONS`; ``detail`` is for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DeliveryError(DriftlineError):
    """The delivery protocol cannot go on: fenced, torn state, a gap in the input."""


class Fenced(DeliveryError):
    """Another owner has taken over this task's transactional id; this process must let go of it at once."""


class Halted(DeliveryError):
    """Most of an input is bad: its task stops until contracts change, instead of dead-lettering the stream."""


class StateCorrupt(DeliveryError):
    """A manifest names a piece that is missing or whose checksum differs."""


class WarehouseError(DriftlineError):
    """ClickHouse refused or could not be reached."""


class DetectorError(DriftlineError):
    """A detector was configured or fed in a way it cannot work with."""


class SnapshotError(DetectorError):
    """A detector's or a task's stored state cannot be read by this code version."""


class RegistryError(DriftlineError):
    """A model version is missing, altered, or was registered twice."""


class StoreUnavailable(RegistryError):
    """What keeps model versions does not answer or refuses us: true of the store and not of any version. Ask again."""


class SignatureError(DriftlineError):
    """A command, fact or artifact does not carry a valid signature of a known key."""


class RolloutError(DriftlineError):
    """A deployment command cannot be carried out in the state the model is in."""


class TrainingError(DriftlineError):
    """A training run was refused or failed; the reason is the message."""


class TrainerCommandError(TrainingError):
    """A trainer's command line failed, took too long, or wrote what cannot be used. It may succeed when tried again."""


class AccessError(DriftlineError):
    """A caller's token, or the file tokens are kept in, cannot be used."""


class RecordError(DriftlineError):
    """The record of decisions is not whole: a fact is missing, changed, out of order or not signed by a known key."""
