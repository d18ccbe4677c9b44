"""Cells of windows as bytes and back: nothing is lost, damage is named, and what the code before wrote is read."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.contracts import ColumnReference, Feature, ModelContract, ModelRecord, Monitoring, Reference
from schemas.errors import StateCorrupt
from schemas.rows import TABLES
from streams.core import tally
from streams.core.aggregates import Cell
from streams.core.cell_codec import (
    decode_counts,
    decode_features,
    decode_numbers,
    encode_counts,
    encode_features,
)
from streams.core.join_state import WindowKey
from streams.core.layouts import OTHER, Layout, Part, Plans
from streams.core.window_state import Group, Layouts, decode_group, encode_groups, put_by
from streams.core.windows import Windows
from tests.support_examples import examples
from tests.support_join import CONTRACT, HOUR, T0, Stream, join_core, prediction
from tests.support_upserts import spread

CATEGORIES = ("a", "b")
values = st.floats(allow_nan=True, allow_infinity=False) | st.sampled_from([-1.0, 0.0, -0.0, 0.5, 9e300])
ROWS = st.lists(st.tuples(values, values, st.sampled_from([0.0, 1.0, 2.0, math.nan])), max_size=6)


def contract(*names: str, categories: tuple[str, ...] = CATEGORIES, bins: int = 20) -> ModelContract:
    """Numbers, and one feature with categories."""
    numbers = [Feature(name=name, nullable=True, low=-1.0, high=1.0) for name in names]
    last = Feature(name="c", kind="categorical", categories=categories, nullable=True)
    return ModelContract(model="m", features=(*numbers, last), monitoring=Monitoring(histogram_bins=bins))


def counted(of: ModelContract, rows: list[tuple[float, ...]], plans: Plans, cell: Cell) -> None:
    """Rows of a contract in a cell."""
    plan = plans.of(of, None, cell.layout)
    if cell.layout is not plan.layout:
        cell.sums = plan.layout.empty if cell.layout is None else plan.layout.moved(cell.sums, cell.layout)
        cell.layout = plan.layout
    cell.sums = cell.sums.copy()
    flat = np.array(rows, np.float64).reshape(-1)
    at, none = np.arange(len(rows)) * len(of.features), np.zeros(len(rows), np.int64)
    number, start = np.array([plan.number]), np.zeros(1, np.int64)
    step = np.ones(1, np.int64)
    reals = cell.sums.view(np.float64)
    tally.features(flat, at, step, none, none, number, start, plans.arrays, cell.sums, reals)


@examples(50)
@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(0, 9))
def test_what_cells_have_counted_is_read_back_to_the_last_bit(
    cells: list[list[tuple[float, ...]]], more: int
) -> None:
    """No row, one, two (of which only the values are stored) and many; cells of different layouts in one call."""
    plans, found = Plans(), []
    for at, rows in enumerate(cells):
        found.append(Cell())
        counted(contract("x", "y", bins=20 + at % 2), rows, plans, found[-1])
    layouts = [cell.layout for cell in found if cell.layout is not None]
    predictions = [len(rows) + more for rows in cells]
    written = encode_features(layouts, [cell.sums for cell in found], predictions)
    for data, layout, cell, rows in zip(written, layouts, found, predictions, strict=True):
        assert decode_features(data, layout, rows).tobytes() == cell.sums.tobytes()


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from([0, 0, 1, 127, 128, 2**53]),
            min_size=tally.FACTS_WIDTH,
            max_size=tally.FACTS_WIDTH,
        ),
        min_size=1,
    )
)
def test_counts_are_read_back(rows: list[list[int]]) -> None:
    """Few scores and many, zeros anywhere, and large ones."""
    for data, row in zip(encode_counts(np.array(rows, np.int64)), rows, strict=True):
        found = np.zeros(tally.FACTS_WIDTH, np.int64)
        decode_counts(data, found)
        assert found.tolist() == row


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 20))
def test_damaged_bytes_are_refused_or_read_as_something(data: bytes, rows: int) -> None:
    """Never beyond their end: a checksum has said that they are whole, but a wrong layout is named."""
    layout = Layout((Part("x", (0.0, 1.0)), Part("c", (), ("a", OTHER))))
    for work in (
        lambda: decode_features(data, layout, rows),
        lambda: decode_numbers(data, np.zeros(27, np.int64)),
        lambda: decode_counts(data, np.zeros(27, np.int64)),
    ):
        try:
            work()
        except ValueError as error:
            assert "of another" in str(error)  # noqa: PT017 - bytes may also mean something


def test_a_window_of_two_rows_is_hardly_larger_than_they() -> None:
    """Ten numbers each: what is stored beside the twenty is a fraction of them."""
    plans, cell = Plans(), Cell()
    names = [f"x{n}" for n in range(10)]
    rows = np.column_stack([np.random.default_rng(1).uniform(-1, 1, (2, 10)), [0, 1]]).tolist()
    counted(contract(*names), rows, plans, cell)
    assert cell.layout is not None
    (data,) = encode_features([cell.layout], [cell.sums], [2])
    assert len(data) < 2 * 10 * 8 + 45


def test_a_contract_that_changes_in_the_middle_of_a_window_goes_on_counting() -> None:
    """What was counted keeps its borders and its names; what is new begins; what is gone stays as it was."""
    plans, cell = Plans(), Cell()
    counted(contract("x", "y"), [(0.5, 0.5, 0.0), (0.5, 0.5, 2.0)], plans, cell)
    counted(
        contract("y", "z", categories=("b", "c"), bins=10), [(0.5, -0.5, 0.0), (0.5, -0.5, 1.0)], plans, cell
    )
    counted(contract("x", "y"), [(0.5, math.nan, 1.0)], plans, cell)
    layout = cell.layout
    assert layout is not None
    assert [part.name for part in layout.parts] == ["x", "y", "c", "z"]
    rows = {part.name: int(layout.of(cell.sums, at)[0]) for at, part in enumerate(layout.parts)}
    assert rows == {"x": 3, "y": 5, "c": 5, "z": 2}
    c = layout.parts[2]
    held = dict(zip(c.categories, layout.of(cell.sums, 2)[7:].tolist(), strict=True))
    assert held == {"a": 1, "b": 2, OTHER: 1, "c": 1}
    assert len(layout.parts[1].edges) == 19
    assert len(layout.parts[3].edges) == 9


def test_a_feature_of_another_kind_begins_anew() -> None:
    """A number that becomes a category has nothing to add to."""
    plans, cell = Plans(), Cell()
    counted(contract("x"), [(0.5, 0.0)], plans, cell)
    other = Feature(name="x", kind="categorical", categories=("u",))
    counted(ModelContract(model="m", features=(other,)), [(0.0,), (1.0,)], plans, cell)
    assert cell.layout is not None
    assert cell.layout.of(cell.sums, cell.layout.place["x"]).tolist()[:3] == [2, 0, 1]
    assert cell.layout.of(cell.sums, cell.layout.place["x"]).tolist()[7:] == [1, 1]


def test_a_restored_core_counts_on_where_the_state_ends() -> None:
    """The layouts of state and of contract are one to the eye, though not to the machine."""
    rows = []
    for restarts in (False, True):
        core, stream = join_core(), Stream()
        core.apply([stream.event(prediction("a"))], 0)
        pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
        windows = {name: data for name, data in pieces.items() if name.startswith(("window/", "edges/"))}
        if restarts:
            core._windows = Windows(0)
            core._windows.restore(windows)
        core.apply([stream.event(prediction("b"))], 0)
        layouts = [name for name in core.changed_pieces() if name.startswith("edges/")]
        assert layouts == []
        core.committed(1)
        rows.append(sorted(repr(upsert[:4]) for upsert in spread(core.upserts())))
    assert rows[0] == rows[1] != []


def test_a_window_of_the_layout_before_is_read() -> None:
    """An update of the monitor begins with the state that is there, and tells the warehouse the same."""
    edges = tuple(np.linspace(0.0, 5000.0, 21)[1:-1].tolist())
    known = [["distance", edges], ["wind", ()], ["origin", ()]]
    features = [
        [2, 0, 1, -3_000_000, -4.0, 1.0, [2, *[0] * 19], {}],
        [2, 1, 0, str(2**70), 2.0, 2.0, [1], {}],
        [2, 0, 1, 0, math.inf, -math.inf, 1, {"JFK": 1, OTHER: 1}],
    ]
    scores = [0] * 15 + [2] + [0] * 4
    outcomes = [
        2,
        1,
        0,
        1,
        0,
        0,
        0,
        287_682_072,
        62_500_000,
        [200, [150], [1]],
        200,
        10,
        10,
        10,
        0,
        0,
        {3: 1},
        {},
        T0,
        T0,
    ]
    cells = [
        ["v1", "stable", "", [2, 1, 0, 0, 2, 99, 5, {0: 2}, scores], outcomes, "abc", features],
        ["v1", "stable", "origin=JFK", [1, 0, 0, 0, 1, 40, 5, {0: 1}, 20], [1], "", []],
    ]
    piece = [4, ["flights", T0, HOUR], [HOUR, 0, 0], False, False, False, cells]
    name = f"window/flights/{T0}/{HOUR}"
    windows = Windows(0)
    windows.restore({name: msgspec.msgpack.encode(piece), "edges/abc": msgspec.msgpack.encode(known)})
    rows = [dict(zip(TABLES[u.table].names, u.row, strict=True)) for u in spread(windows.upserts(7))]
    whole = next(r for r in rows if "latency_buckets" in r and not r["segment"])
    assert (whole["predictions"], whole["errors"], whole["score_histogram"]) == (2, 1, scores)
    told = {r["feature"]: r for r in rows if "feature" in r}
    assert (told["distance"]["sum_micro"], told["distance"]["low"], told["distance"]["edges"]) == (
        -3_000_000,
        -4.0,
        [*edges],
    )
    assert told["wind"]["sum_micro"] == 2**63 - 1
    assert told["origin"]["categories"] == {OTHER: 1, "JFK": 1}
    (labelled,) = (r for r in rows if r.get("labelled") == 1)
    assert (labelled["predictions"], labelled["positive_delays"]) == (2, {3: 1})
    windows.reconfigured("flights")
    assert windows.changed_pieces() == {}


def test_a_piece_of_a_layout_that_is_not_there_is_named() -> None:
    """Never a silent start from less."""
    plans, group = Plans(), Group(WindowKey("m", 0, HOUR))
    counted(contract("x"), [(0.5, 0.0)], plans, group.cell(("1", "stable", "")))
    ((name, data),) = encode_groups([group], Layouts())
    with pytest.raises(StateCorrupt, match="window/m/0"):
        decode_group(name, data, Layouts())


def test_a_model_of_more_features_than_before_is_read_by_its_own() -> None:
    """Reconfigured in the middle of a window: rows of both contracts are in the window's one row of each feature."""
    more = CONTRACT.model_copy(
        update={"features": (*CONTRACT.features, Feature(name="gusts", low=0.0, high=1.0))}
    )
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction("a"))], 0)
    core.activate([ModelRecord(contract=more)])
    features = {"distance": 1.0, "wind": 1.0, "origin": "JFK", "gusts": 0.5}
    core.apply([stream.event(prediction("b", features=features))], 0)
    core.committed(1)
    rows = {u.key[-1]: u.row[len(u.key)] for u in spread(core.upserts()) if u.table == "window_features"}
    assert rows == {"distance": 2, "wind": 2, "origin": 2, "gusts": 1}


def test_a_reference_that_comes_later_leaves_borders_as_they_are() -> None:
    """Histograms of one window are of one kind."""
    plans, cell = Plans(), Cell()
    of = contract("x")
    counted(of, [(0.5, 0.0)], plans, cell)
    before = cell.layout
    columns = {"x": ColumnReference(rows=9, quantiles=(0.0, 0.25, 1.0))}
    assert plans.of(of, Reference(columns=columns), cell.layout).layout is before


def test_what_a_closed_window_has_counted_is_held_as_it_is_stored_and_counted_on() -> None:
    """Sums are the same as of one that stays open, also when a row comes late; and what is stored is not made twice."""
    plans, of, cells = Plans(), contract("x"), (Cell(), Cell())
    group = Group(WindowKey("m", 0, 60_000), {("v", "stable", ""): cells[0]})
    for rows in ([(0.5, 0.0), (-0.5, 1.0)], [(0.25, math.nan)]):
        for cell in cells:
            counted(of, rows, plans, cell)
            cell.counts = cell.counts + np.eye(1, len(cell.counts), dtype=np.int64)[0] * len(rows)
        assert cells[0].features is None
        put_by([group])
        held = cells[0].features
        assert held is not None and len(held) < cells[0].sums.nbytes // 4
        assert cells[0].sums.tobytes() == cells[1].sums.tobytes()
        put_by([group])
        assert cells[0].features is held
    cells[0].counts = cells[0].counts + 1
    assert cells[0].features is None, "written against another number of rows"
    assert cells[0].sums.tobytes() == cells[1].sums.tobytes()
