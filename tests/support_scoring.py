"""What the tests of the scorer share: requests as Kafka's client hands them out."""

from __future__ import annotations

from typing import Any


class Incoming:
    """One record of ``scoring-requests``, with the methods of the client's ``Message``."""

    def __init__(
        self,
        value: bytes | None,
        partition: int = 0,
        offset: int = 0,
        key: bytes | None = None,
        headers: Any = None,
        arrived_ms: int = 0,
    ) -> None:
        self._value, self._key, self._headers = value, key, headers
        self._partition, self._offset, self._arrived_ms = partition, offset, arrived_ms

    def topic(self) -> str:
        return "scoring-requests"

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Any:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, self._arrived_ms
