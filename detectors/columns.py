"""What a detector of a contract is given: asked by the monitor that feeds it and by the tools that try it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping

from detectors.base import STREAM_COLUMNS, Context, Spec
from detectors.registry import spec_for
from detectors.tools.same import by_identity
from schemas.contracts import DetectorConfig, Feature, ModelContract, Reference
from schemas.errors import ConfigurationError


def stream_columns(contract: ModelContract, stream: str) -> list[tuple[str, Feature | None]]:
    """Names of a stream's columns in order, and the contract's feature where a column is one."""
    columns: list[tuple[str, Feature | None]] = [(name, None) for name in STREAM_COLUMNS.get(stream, ())]
    if stream in ("features", "predictions"):
        columns += [(feature.name, feature) for feature in contract.features]
    elif stream == "loss":
        of = {feature.name: feature for feature in contract.features}
        columns += [(name, of[name]) for name in contract.monitoring.segments]
    return columns


def columns_read(
    contract: ModelContract, config: DetectorConfig, spec: Spec
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Names, numbers of categories (0: numeric) and places of the columns a detector reads of its stream.

    Raises ConfigurationError when none is left: no feature has the name, or only categorical ones for a detector that
    reads numbers.
    """
    columns = [
        (name, 0 if feature is None or feature.kind == "numeric" else len(feature.categories) + 1)
        for name, feature in stream_columns(contract, config.stream)
    ]
    chosen = [
        (name, categories, place)
        for place, (name, categories) in enumerate(columns)
        if (name in config.columns or "*" in config.columns) and not (spec.numeric_only and categories)
    ]
    if not chosen:
        raise ConfigurationError(
            f"detector {config.name}: no column of stream {config.stream} is left to read"
            + (f"; {config.kind} reads numbers only" if spec.numeric_only else "")
        )
    names, codes, places = zip(*chosen, strict=True)
    return names, codes, places


@by_identity(8)
def share_of_budget(contract: ModelContract) -> float:
    """Each detector's part of the model's budget of false pages: one over those that spend it.

    The others can only warn or ticket, or state facts, or keep an error rate of their own (the judge of a canary). With
    every part kept, the sum over the detectors that page stays within the budget (expectations add up, whatever the
    dependence).
    """
    return 1 / max(1, sum(_spend(contract)))


def _spend(contract: ModelContract) -> Iterable[bool]:
    for config in contract.monitoring.detectors:
        try:
            yield spec_for(config).spends_budget
        except (ConfigurationError, ImportError):
            yield False


def context_of(
    contract: ModelContract,
    config: DetectorConfig,
    spec: Spec,
    *,
    reference: Reference | None,
    version: str = "",
    share: float = 1.0,
    seed: int = 0,
    trained_to_ms: int | None = None,
    cache: MutableMapping[str, bytes] | None = None,
) -> Context:
    """What a detector of the contract may know. Raises ConfigurationError when it has no column to read."""
    names, codes, _ = columns_read(contract, config, spec)
    declared: Mapping[str, Feature] = {f.name: f for f in contract.features if f.name in names}
    return Context(
        columns=names,
        categories=codes,
        stream=config.stream,
        reference=reference,
        version=version,
        false_pages=contract.monitoring.false_pages,
        share=share,
        seed=seed,
        features=declared,
        trained_to_ms=trained_to_ms,
        decision=contract.threshold,
        cache={} if cache is None else cache,
    )
