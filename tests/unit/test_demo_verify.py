"""The demo's own computation of what ClickHouse must hold, where it is not a plain sum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deploy.demo.verify import KEY, _auc


def test_the_auc_of_every_group_counts_pairs_and_halves_ties() -> None:
    """Against all pairs one by one, for scores with many ties; a group of one class has none."""
    rng = np.random.default_rng(0)
    n = 300
    rows = pd.DataFrame(
        {
            "window_start_ms": rng.integers(0, 3, n), "version": "v1", "role": "stable", "segment": "",
            "score": np.round(rng.random(n), 1), "late": rng.integers(0, 2, n).astype(float),
        }
    )  # fmt: skip
    rows.loc[rows["window_start_ms"] == 2, "late"] = 1.0
    found = _auc(rows)
    for key, group in rows.groupby(KEY):
        good = group.loc[group["late"] == 1, "score"].to_numpy()[:, None]
        bad = group.loc[group["late"] == 0, "score"].to_numpy()
        if len(bad):
            assert found[key] == pytest.approx(((good > bad) + 0.5 * (good == bad)).mean())
        else:
            assert np.isnan(found[key])
