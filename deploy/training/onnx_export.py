"""Writes a fitted histogram gradient-boosting classifier as ONNX, node for node.

The general converter cannot write the missing-value branches of these trees with the ``onnx`` release this project
pins (it passes booleans where integers are required), and it rounds thresholds to the nearest float32, which can send
a row down the other branch. The trees are simple enough to be written directly: thresholds are rounded down to
float32, so for float32 input every comparison falls as it did in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.training.scores import ONNX_INPUT, ONNX_OUTPUT
from schemas.errors import TrainingError

_OPSET, _OPSET_ML, _IR_VERSION = 17, 3, 8


def boosted_trees_to_onnx(model: Any, features: int) -> bytes:
    """A fitted binary ``HistGradientBoostingClassifier`` as an ONNX file.

    Input ``features`` float32 ``[n, features]``, NaN where a value is missing; output ``score`` float32 ``[n]``,
    P(label 1). Raises ``TrainingError`` for more than two classes or native categorical splits.
    """
    from onnx import TensorProto, helper

    rounds = model._predictors
    if any(len(trees) != 1 for trees in rounds):
        raise TrainingError("only a binary classifier can be exported: this one has more than two classes")
    trees = [trees[0].nodes for trees in rounds]
    nodes = np.concatenate(trees)
    if nodes["is_categorical"].any():
        raise TrainingError("native categorical splits cannot be exported: encode the categories as numbers")
    sizes = [len(tree) for tree in trees]
    tree_of = np.repeat(np.arange(len(trees)), sizes)
    node_of = np.concatenate([np.arange(size) for size in sizes])
    leaf = nodes["is_leaf"].astype(bool)
    zero_at_leaf = ~leaf

    def whole(values: npt.NDArray[Any]) -> list[int]:
        return [int(value) for value in values]

    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        [ONNX_INPUT],
        ["log_odds"],
        domain="ai.onnx.ml",
        n_targets=1,
        base_values=[float(np.ravel(model._baseline_prediction)[0])],
        nodes_treeids=whole(tree_of),
        nodes_nodeids=whole(node_of),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_featureids=whole(nodes["feature_idx"] * zero_at_leaf),
        nodes_values=_round_down(np.where(leaf, 0.0, nodes["num_threshold"])).tolist(),
        nodes_truenodeids=whole(nodes["left"] * zero_at_leaf),
        nodes_falsenodeids=whole(nodes["right"] * zero_at_leaf),
        nodes_missing_value_tracks_true=whole(nodes["missing_go_to_left"] * zero_at_leaf),
        target_treeids=whole(tree_of[leaf]),
        target_nodeids=whole(node_of[leaf]),
        target_ids=[0] * int(leaf.sum()),
        target_weights=nodes["value"][leaf].astype(np.float32).tolist(),
    )
    flat = helper.make_tensor("flat", TensorProto.INT64, [1], [-1])
    graph = helper.make_graph(
        [
            ensemble,
            helper.make_node("Sigmoid", ["log_odds"], ["column"]),
            helper.make_node("Reshape", ["column", "flat"], [ONNX_OUTPUT]),
        ],
        "boosted_trees",
        [helper.make_tensor_value_info(ONNX_INPUT, TensorProto.FLOAT, [None, features])],
        [helper.make_tensor_value_info(ONNX_OUTPUT, TensorProto.FLOAT, [None])],
        [flat],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _OPSET_ML)],
        ir_version=_IR_VERSION,
    )
    return bytes(proto.SerializeToString(deterministic=True))


def _round_down(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 not above each value: x <= value and x <= rounded agree for every float32 x."""
    near = values.astype(np.float32)
    above = near.astype(np.float64) > values
    return np.where(above, np.nextafter(near, np.float32(-np.inf)), near)
