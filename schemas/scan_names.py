"""The names a monitor knows in predictions: fields, models, roles, states, features and their categories, as one table.

Made once for a set of contracts, looked up in for every event (``schemas.scan``) and written from where a row says what
its event did not (``schemas.scan_rows``). The constants are part of machine code that is kept (``schemas.compiled``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import ModelContract
from schemas.events import STATUSES
from schemas.ids import ROLES
from schemas.json_text import Integers, Table, table_of

#: Fields of an event; their order is their number.
FIELDS = (
    "prediction_id", "model", "version", "event_time_ms", "features", "role", "score", "latency_ms", "status", "entity",
    "region", "trace_id",
)  # fmt: skip
(
    ID, MODEL, VERSION, TIME, FEATURES, ROLE, SCORE, LATENCY, STATUS, ENTITY, REGION, TRACE,
) = range(len(FIELDS))  # fmt: skip
#: Contexts of names; those of features and categories come after.
OF_FIELDS, OF_MODELS, OF_ROLES, OF_STATUSES, OF_REST = range(5)


class Names(NamedTuple):
    """What is looked up: fields, models, roles, states, and of each model its features and their categories.

    A name is known by its context and its bytes; ``value`` is what it stands for there. Features of all models lie one
    behind the other, those of model ``m`` from ``first[m]`` on; ``context_of`` is that of a feature's categories, -1: it
    is numeric; ``name_of`` is the number of its name.
    """

    table: Table
    value: Integers
    first: Integers
    model_context: Integers
    context_of: Integers
    categories: Integers
    nullable: NDArray[np.bool_]
    name_of: Integers


def names_of(contracts: Mapping[str, ModelContract]) -> Names:
    """The table of all names of these models; their numbers are their places."""
    texts: list[bytes] = []
    contexts: list[int] = []
    values: list[int] = []

    def add(context: int, names: tuple[str, ...]) -> None:
        texts.extend(name.encode() for name in names)
        contexts.extend([context] * len(names))
        values.extend(range(len(names)))

    add(OF_FIELDS, FIELDS)
    add(OF_MODELS, tuple(contracts))
    add(OF_ROLES, ROLES)
    add(OF_STATUSES, STATUSES)
    context = OF_REST
    first, model_context, context_of, categories, nullable = [0], [], [], [], []
    name_of: list[int] = []
    for contract in contracts.values():
        model_context.append(context)
        name_of += range(len(texts), len(texts) + len(contract.features))
        add(context, tuple(contract.feature_names))
        context += 1
        for feature in contract.features:
            nullable.append(feature.nullable)
            categories.append(len(feature.categories))
            context_of.append(-1 if feature.kind == "numeric" else context)
            if feature.kind != "numeric":
                add(context, tuple(feature.categories))
                context += 1
        first.append(len(context_of))
    return Names(
        table_of(texts, contexts), np.array(values, np.int64), np.array(first, np.int64), np.array(model_context, np.int64),
        np.array(context_of, np.int64), np.array(categories, np.int64), np.array(nullable, np.bool_),
        np.array(name_of, np.int64),
    )  # fmt: skip
