"""To what rows belong: their segments, and the combinations of window, version, role and segments that a batch has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import SEGMENT_NULL
from schemas.contracts import ModelContract
from schemas.ids import ROLES
from streams.core import tally
from streams.core.arriving import combinations, steps
from streams.core.distinct import distinct, few
from streams.core.join_state import Kind, WindowKey
from streams.core.layouts import OTHER
from streams.core.together import Together

NULL = "(null)"
Ints = NDArray[np.int64]


class Segments:
    """The segments of one contract: for each segment feature, ``origin=EWR`` and the like by category code.

    ``contract_hash``: the contract's, which takes as long to make as a batch does to count.
    """

    def __init__(self, contract: ModelContract) -> None:
        self.contract_hash = contract.hash
        names = contract.feature_names
        most = contract.monitoring.segments_max
        places: list[int] = []
        self.labels: list[list[str]] = []
        codes: list[list[int]] = []
        self._named: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._category: list[dict[str, int]] = []
        for name in contract.monitoring.segments:
            place = names.index(name)
            categories = contract.features[place].categories
            shown = [f"{name}={c}" for c in categories[:most]]
            other = [len(shown)] * (len(categories) - len(shown) + 1)
            places.append(place)
            self.labels.append([*shown, f"{name}={OTHER}", f"{name}={NULL}"])
            codes.append([*range(len(shown)), *other, len(shown) + 1])
            self._category.append(
                {label: code for code, label in enumerate(shown)}
                | {f"{name}={OTHER}": len(categories), f"{name}={NULL}": SEGMENT_NULL}
            )
        #: For compiled code: of each segment feature its place, how many codes it has, and for each code of a category, in the
        #: end null, the place of its label and what observation blocks say.
        self.places: Ints = np.array(places, np.int64)
        self.sizes: Ints = np.array([len(of) for of in codes], np.int64)
        self.labelled: Ints = np.array([code for of in codes for code in of], np.int64)
        self.told: Ints = np.array(
            [
                category[labels[code]]
                for of, labels, category in zip(codes, self.labels, self._category, strict=True)
                for code in of
            ],
            np.int64,
        )

    @property
    def decoding(self) -> list[dict[int, str]]:
        """For each segment feature, what the codes of ``categories`` stand for."""
        return [{code: label for label, code in of.items()} for of in self._category]

    def named(self, codes: tuple[int, ...]) -> tuple[str, ...]:
        """The labels of a row with these places in ``labels``; the same tuple each time."""
        found = self._named.get(codes)
        if found is None:
            found = self._named[codes] = tuple(of[code] for of, code in zip(self.labels, codes, strict=True))
        return found

    def categories_of(self, segments: Sequence[tuple[str, ...]]) -> NDArray[np.int32]:
        """The same of what :meth:`of_rows` said; null where a label was given under another contract."""
        place: dict[tuple[str, ...], int] = {}
        places = np.fromiter((place.setdefault(row, len(place)) for row in segments), np.int64, len(segments))
        coded = [
            [next((of[s] for s in row if s in of), SEGMENT_NULL) for of in self._category] for row in place
        ]
        return np.array(coded, np.int32).reshape(len(place), len(self._category))[places]


def coded(rows: Together, segments: Sequence[Segments]) -> tuple[Ints, NDArray[np.int32]]:
    """Of every row, by segment feature of its model: the place of its label in ``labels``, shape (s, n), 0 where its model has
    fewer; and the codes of categories that observation blocks carry, shape (n, s). ``segments``: of the parts."""
    widths = [len(of.places) for of in segments]
    labelled, told = (
        np.zeros((max(widths), len(rows)), np.int64),
        np.zeros((len(rows), max(widths)), np.int32),
    )
    if max(widths):
        sizes = np.concatenate([of.sizes for of in segments])
        tally.segments(
            rows.values, rows.at, rows.step, rows.model, np.cumsum([0, *widths]), np.concatenate([of.places for of in segments]),
            np.cumsum(sizes), np.concatenate([of.labelled for of in segments]), np.concatenate([of.told for of in segments]),
            labelled, told,
        )  # fmt: skip
    return labelled, told


@dataclass(frozen=True, slots=True)
class Members:
    """To which of ``m`` combinations of window, version, role and segments each of ``n`` rows belongs: ``of_row (n,)``.

    Arrays of shape (m,): ``model`` says which part, ``window`` and ``version`` point into ``windows`` and the rows'
    ``versions``, ``segments[s]`` into the model's s-th segment feature's labels.
    """

    windows: list[WindowKey]
    of_row: Ints
    model: Ints
    window: Ints
    version: Ints
    role: Ints
    segments: list[Ints]

    @classmethod
    def of(cls, rows: Together, starts_ms: Ints, codes: Ints) -> Members:
        """``starts_ms (n,)``: where each row's window begins; ``codes``: see :func:`coded`."""
        contracts, models, n = [part.contract for part in rows.parts], len(rows.parts), len(rows)
        panes = np.array([contract.monitoring.pane_ms for contract in contracts], np.int64)
        step = np.empty(n, np.int64)
        first, last = steps(starts_ms, rows.model, panes, step)
        most = max(len(part.versions) for part in rows.parts)
        versions = np.array([at for part in rows.parts for at in range(len(part.versions))], np.int64)
        widths = codes.max(axis=1, initial=0) + 1
        size = (last - first + 1) * models * most * len(ROLES) * math.prod(widths.tolist())
        if few(size, n):
            combined, one = np.empty(n, np.int64), np.empty(size, np.int64)
            count = combinations(
                step, first, rows.model, models, rows.version, versions, most, rows.role, len(ROLES), codes, widths,
                np.full(size, -1), combined, one,
            )  # fmt: skip
            one, step = one[:count], step - first
        else:
            step = step - first
            parts: list[tuple[int, NDArray[Any]]] = [
                (models, rows.model),
                (most, versions[rows.version]),
                (len(ROLES), rows.role),
            ]
            combined, one = _far_apart(
                step, last - first + 1, [*parts, *zip(widths.tolist(), codes, strict=True)]
            )
        found, window = distinct(step[one] * models + rows.model[one])
        at, of = np.divmod(found, models)
        of_windows = zip((at + first).tolist(), of.tolist(), strict=True)
        return cls(
            [
                WindowKey(contract.model, step * contract.monitoring.pane_ms, contract.monitoring.pane_ms)
                for step, contract in ((step, contracts[model]) for step, model in of_windows)
            ],
            combined,
            rows.model[one],
            window,
            rows.version[one],
            rows.role[one].astype(np.int64),
            list(codes[:, one]),
        )

    def __len__(self) -> int:
        return len(self.window)

    def kinds(self, versions: Sequence[str], segments: Sequence[Segments]) -> list[Kind]:
        """The combinations as the join index knows them. ``segments``: of the parts."""
        shown = (
            zip(*(codes.tolist() for codes in self.segments), strict=True)
            if self.segments
            else itertools.repeat(())
        )
        of_model = zip(self.model.tolist(), shown, strict=False)
        named = [segments[model].named(codes[: len(segments[model].labels)]) for model, codes in of_model]
        rows = zip(self.window.tolist(), self.version.tolist(), self.role.tolist(), named, strict=True)
        windows = self.windows
        return [Kind(windows[w], versions[v], role, of) for w, v, role, of in rows]

    def take(self, at: Ints) -> Members:
        """The rows at these places, and the combinations that they have."""
        found, of_row = distinct(self.of_row[at])
        return Members(
            self.windows,
            of_row,
            self.model[found],
            self.window[found],
            self.version[found],
            self.role[found],
            [codes[found] for codes in self.segments],
        )


def _far_apart(step: Ints, size: int, parts: Sequence[tuple[int, NDArray[Any]]]) -> tuple[Ints, Ints]:
    """The same of :func:`combinations`, however many there may be: of rows' windows, ``size`` in all, and what else they have, each
    of so many."""
    combined = step
    for width, code in parts:
        if size * width > 4 * len(step):
            # Made small again, so that any number of segment features fits.
            found, combined = distinct(combined)
            size = len(found)
        combined, size = combined * width + code, size * width
    combined = distinct(combined)[1]
    one = np.zeros(int(combined.max()) + 1, np.int64)
    one[combined] = np.arange(len(combined))
    return combined, one
