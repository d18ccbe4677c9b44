"""Rows on their way to the detectors: blocks of few rows, which are written together, are what each would be by itself."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import NARROWED_MIN
from schemas.contracts import DetectorConfig, Feature, ModelContract, ModelRecord, Monitoring
from streams.core import observe
from streams.core.delivery import Out
from streams.core.pipeline import JoinCore
from tests.support_examples import examples
from tests.support_join import T0, Stream, join_core, prediction, truth


def contract(at: int) -> ModelContract:
    """Models differ in features, segments, and in whether anybody reads them."""
    features = (
        *(Feature(name=f"x{n}", nullable=True) for n in range(at % 3)),
        Feature(name="c", kind="categorical", categories=("a", "b"), nullable=True),
    )
    detectors = (DetectorConfig(name="psi", kind="psi", stream="features"),) if at % 4 else ()
    monitoring = Monitoring(segments=("c",) if at % 5 else (), detectors=detectors)
    return ModelContract(model=f"m{at}", features=features, monitoring=monitoring)


def observed(events: list[tuple[int, float, str, int]], batches: int) -> list[Out]:
    """What leaves for the detectors of events (model, value, version, offset in time), which come in so many batches."""
    core, stream = JoinCore(join_core()._context), Stream()
    core.activate([ModelRecord(contract=contract(at)) for at in range(12)])
    made: list[dict[str, Any]] = []
    for at, (model, value, version, later) in enumerate(events):
        features = {f"x{n}": None if value > 8 else value + n for n in range(model % 3)} | {"c": "ab"[at % 2]}
        name = f"m{model}"
        made.append(
            prediction(
                f"p{at}", model=name, version=version, event_time_ms=T0 + later, features=features, score=0.5
            )
        )
    size = -(-len(made) // batches)
    for start in range(0, len(made), size):
        core.apply([stream.event(event) for event in made[start : start + size]], 0)
        core.apply([stream.event(truth("p0", model=made[0]["model"]))], 0)
    return core.outputs()


@examples(10)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 11), st.floats(-9, 9), st.sampled_from(["1", "2", "fallback"]), st.integers(0, 999)
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, NARROWED_MIN + 3),
    st.integers(1, 3),
)
def test_few_rows_of_many_models_are_written_as_the_rows_of_each_would_be(
    events: list[tuple[int, float, str, int]], more: int, batches: int
) -> None:
    """Whatever the models have, in one batch or in several, and beside a model that has many rows."""
    events = [*events, *((7, 1.0, "1", at) for at in range(more))]
    together = observed(events, batches)
    few, observe._FEW_NUMBERS = observe._FEW_NUMBERS, -1
    try:
        apart = observed(events, batches)
    finally:
        observe._FEW_NUMBERS = few
    assert together == apart
