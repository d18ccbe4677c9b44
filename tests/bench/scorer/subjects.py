"""What the scorer is measured with: two ensembles of random trees, and requests of about 440 bytes with 10 features.

``small`` costs what a version of the shipped trainer costs (80 trees of 16 leaves); ``large`` what a model that has been
worked on costs (600 trees of 64 leaves). Trees are random: what they say does not matter here, how long they take does.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.registry import Artifact, Golden, Lineage, Registry
from deploy.training.features import Encoder
from schemas.contracts import Feature, ModelContract, ModelRecord, Reference

MODEL = "bench"
COUNTRIES = ("de", "fr", "it", "es", "pl")
SIZES = {"small": (80, 4), "large": (600, 6)}
START_MS = 1_767_225_600_000
_GOLDEN_ROWS = 16


@functools.cache
def contract() -> ModelContract:
    """Nine numbers and a category."""
    numbers = tuple(Feature(name=f"f{i}", low=-10, high=10) for i in range(9))
    return ModelContract(
        model=MODEL, features=(*numbers, Feature(name="country", kind="categorical", categories=COUNTRIES))
    )


@functools.cache
def ensemble(trees: int, depth: int, seed: int = 1) -> bytes:
    """``trees`` complete trees of ``2**depth`` leaves over 10 features as ONNX; the score is a probability, ``(n,)``."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(seed)
    inner, total = 2**depth - 1, 2 ** (depth + 1) - 1
    node = np.tile(np.arange(total), trees)
    tree = np.repeat(np.arange(trees), total)
    leaf = node >= inner
    leaves = np.flatnonzero(leaf)
    forest = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["log_odds"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=tree.tolist(),
        nodes_nodeids=node.tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_featureids=np.where(leaf, 0, rng.integers(0, 9, len(node))).tolist(),
        nodes_values=np.where(leaf, 0.0, rng.normal(size=len(node))).tolist(),
        nodes_truenodeids=np.where(leaf, 0, 2 * node + 1).tolist(),
        nodes_falsenodeids=np.where(leaf, 0, 2 * node + 2).tolist(),
        nodes_missing_value_tracks_true=np.zeros(len(node), int).tolist(),
        target_treeids=tree[leaves].tolist(),
        target_nodeids=node[leaves].tolist(),
        target_ids=np.zeros(len(leaves), int).tolist(),
        target_weights=rng.normal(scale=0.5 / np.sqrt(trees), size=len(leaves)).tolist(),
    )
    graph = helper.make_graph(
        [
            forest,
            helper.make_node("Sigmoid", ["log_odds"], ["probability"]),
            helper.make_node("Flatten", ["probability"], ["score"], axis=1),
        ],
        "forest",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 10])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return made


def encoder(declared: ModelContract) -> Encoder:
    """Numbers as they are, the country by its place."""
    return Encoder(
        declared.feature_names, {"country": {c: i for i, c in enumerate(COUNTRIES)}}, {"country": 5}
    )


def rows(count: int, seed: int = 3) -> list[dict[str, Any]]:
    """Features as callers send them."""
    values = np.random.default_rng(seed).normal(size=(count, 9)).tolist()
    return [
        {f"f{i}": value for i, value in enumerate(line)} | {"country": COUNTRIES[at % 5]}
        for at, line in enumerate(values)
    ]


def matrix(count: int, seed: int = 3) -> NDArray[np.float32]:
    """The same as a model reads it."""
    return encoder(contract()).encode_rows(rows(count, seed))


def register(root: Path, size: str, versions: int = 2) -> list[ModelRecord]:
    """Versions 1 to ``versions`` of one size in a registry at ``root``; returns the records for `models`."""
    import onnxruntime

    declared, registry = contract(), Registry(root)
    records = [ModelRecord(contract=declared)]
    for number in range(1, versions + 1):
        onnx = ensemble(*SIZES[size], seed=number)
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        inputs = rows(_GOLDEN_ROWS)
        scores = session.run(None, {"features": encoder(declared).encode_rows(inputs)})[0].reshape(-1)
        golden = Golden(tuple(inputs), tuple(scores.tolist()))
        artifact = Artifact(onnx, encoder(declared).to_json(), golden, Reference(), "")
        records.append(ModelRecord(version=registry.register(declared, artifact, Lineage())))
    return records


def requests(count: int, first: int = 0, distinct: int = 4_096) -> list[tuple[bytes, bytes]]:
    """(key, value) of ``count`` scoring requests; their features repeat after ``distinct`` of them."""
    features = [msgspec.Raw(msgspec.json.encode(row)) for row in rows(min(count, distinct))]
    found = []
    for at in range(first, first + count):
        identity = f"{at:08d}-bench-5a1e-request-identifier"
        request = {
            "request_id": identity,
            "model": MODEL,
            "event_time_ms": START_MS + at,
            "features": features[at % len(features)],
            "entity": f"customer-{at % 5_000}",
            "trace_id": "0123456789abcdef0123456789abcdef",
        }
        found.append((identity.encode(), msgspec.json.encode(request)))
    return found
