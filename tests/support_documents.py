"""JSON events of several models as services, careless ones too, might send them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from schemas.contracts import Feature, ModelContract
from tests.support_join import CONTRACT, prediction, truth


def _model(name: str, *features: Feature) -> ModelContract:
    return CONTRACT.model_copy(update={"model": name, "features": features})


OTHER = _model(
    "other",
    Feature(name="wind", nullable=True),
    Feature(name="size.m-2"),
    Feature(name="origin", kind="categorical", categories=("EWR", "Zürich", 'a"b'), nullable=True),
)
ONE = _model("one", Feature(name="x"))
CONTRACTS = {contract.model: contract for contract in (CONTRACT, OTHER, ONE)}

names = st.sampled_from([*CONTRACTS, "nobody", "size.m-2"])
scalars = (
    st.none() | st.booleans() | st.integers(-3, 10**19) | st.floats() | st.text(max_size=4)
    | st.sampled_from(["EWR", "Zürich", 'a"b', "stable", "canary", "ok", "", "é", "\x1f", "v" * 101, 0, 1, 1.0, 0.5])
)  # fmt: skip
known = st.sampled_from(["distance", "wind", "origin", "size.m-2", "x"])
features = st.dictionaries(known | st.text(max_size=2), scalars, max_size=4)
FIELDS = ("prediction_id", "model", "version", "event_time_ms", "role", "score", "latency_ms", "status", "entity",
          "region", "trace_id", "revision", "label", "label_time_ms", "extra")  # fmt: skip


@st.composite
def documents(draw: st.DrawFn, kind: str) -> tuple[bytes | None, bytes, bool]:
    """Mostly good events of several models, with a few fields changed, doubled, out of order, spaced out or cut."""
    model = draw(names)
    if kind == "label":
        event: dict[str, Any] = truth(draw(st.sampled_from("abc")), model=model)
    else:
        event = prediction(draw(st.sampled_from("abc")), model=model)
        good = {
            "flights": {"distance": 1.5, "wind": 2, "origin": "LGA"},
            "other": {"size.m-2": -1e-7, "origin": "Zürich"},
            "one": {"x": 0.1},
        }
        event["features"] = good.get(model, {}) | (draw(features) if draw(st.booleans()) else {})
    event |= (
        draw(st.dictionaries(st.sampled_from(FIELDS), scalars, max_size=2)) if draw(st.booleans()) else {}
    )
    pairs = [(json.dumps(k), json.dumps(v, ensure_ascii=draw(st.booleans()))) for k, v in event.items()]
    pairs = draw(st.permutations(pairs))
    if draw(st.integers(0, 9)) == 0:
        pairs.append(pairs[0])
    space = draw(st.sampled_from(["", "", " ", "\n\t "]))
    text = "{" + ",".join(f"{space}{k}{space}:{space}{v}{space}" for k, v in pairs) + "}" + space
    value = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        value = value[: draw(st.integers(0, len(value)))]
    return draw(st.sampled_from([None, None, b"a", b"zz"])), value, False
