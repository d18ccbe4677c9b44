"""What client libraries log goes where everything else goes, and each thing once in a while: a broker that is away is worth a
line, not a flood.

librdkafka writes lines of its own to standard error unless it is told where else to (``LIBRDKAFKA``): a client that is
polled then logs there.
"""

from __future__ import annotations

import logging
import re

#: Of the messages of confluent-kafka (``"%s [%s] %s"``): what differs each time, and which connection of which client said it.
_PASSING = re.compile(r"^\[thrd:[^\]]*\]: |\(after \d+ms in state .*\)$")


class Repeats(logging.Filter):
    """Lets a library say the same thing once in ``interval_s``."""

    def __init__(
        self, libraries: tuple[str, ...] = ("aiokafka", "faust", "mode"), interval_s: float = 5.0
    ) -> None:
        super().__init__()
        self._libraries = libraries
        self._interval_s = interval_s
        self._said: dict[tuple[str, object], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in self._libraries:
            return True
        what: tuple[str, object] = (record.name, record.msg)
        if record.name == LIBRDKAFKA.name and isinstance(record.args, tuple) and len(record.args) == 3:
            facility, _, text = record.args
            what = (str(facility), _PASSING.sub("", str(text)))
        if record.created - self._said.get(what, -self._interval_s) < self._interval_s:
            return False
        if len(self._said) > 1_000:  # messages that were formatted before they were logged
            self._said.clear()
        self._said[what] = record.created
        return True


LIBRDKAFKA = logging.getLogger("librdkafka")
# Of its own, so that commands that configure no logging are not flooded either.
LIBRDKAFKA.addFilter(Repeats((LIBRDKAFKA.name,)))
