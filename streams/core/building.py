"""What a detector of a model is built with, and the signal that a change of its verdict becomes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from detectors.base import Change, Standing
from detectors.columns import columns_read, context_of, share_of_budget
from detectors.registry import spec_for
from schemas.contracts import DetectorConfig, ModelContract, ModelVersion
from schemas.ids import content_hash
from schemas.verdicts import Family, SignalChanged, State
from streams.core.delivery import Out
from streams.core.detect_state import Key, Running, config_hash
from streams.core.incidents import trace_headers
from streams.core.standings import fitted, in_words, reference_hash, standing_key

#: What a detector that could not even be built would have spoken about.
FAMILIES: Mapping[str, Family] = {
    "features": Family.INPUT,
    "score": Family.PREDICTION,
    "predictions": Family.QUALITY,
    "loss": Family.CONCEPT,
    "comparison": Family.COMPARISON,
}


def build(
    contract: ModelContract,
    config: DetectorConfig,
    key: Key,
    version: ModelVersion | None,
    role: str,
    seed: int,
    cache: MutableMapping[str, bytes],
) -> Running:
    """A new detector of the version that ``key`` names. Raises ConfigurationError.

    ``version``: its record, None while it is not known; ``cache``: where calibrations are kept, and the hashes of
    references, until a version is published again.
    """
    spec = spec_for(config)
    _, _, places = columns_read(contract, config, spec)
    context = context_of(
        contract,
        config,
        spec,
        reference=None if version is None else version.reference,
        version=key[1],
        share=share_of_budget(contract),
        seed=seed,
        trained_to_ms=None if version is None else version.trained_to_ms,
        cache=cache,
    )
    named = reference_key(*key[:2])
    reference = cache.get(named, b"").decode() or reference_hash(context.reference)
    if version is not None:
        cache[named] = reference.encode()
    hashes = config_hash(config, context, reference), standing_key(spec, context, reference)
    # A knob is fitted to the budget here; the configuration, and so its hash, is what the owner wrote.
    made, standing = fitted(spec, context, hashes[1], cache)
    known = cache[hashes[1]]
    return Running(config, made, context, made.build(context), role, places, *hashes, known, standing)


def reference_key(model: str, version: str) -> str:
    """Under what the hash of a version's reference is kept."""
    return f"reference/{model}/{version}"


def signal_of(
    key: Key,
    config: DetectorConfig,
    family: Family,
    standing: Standing | None,
    role: str,
    previous: State,
    change: Change,
    address: str,
    contract: ModelContract,
) -> SignalChanged:
    """The signal; its id depends on what it says alone, so that a replay repeats it. ``standing`` None: pages nobody."""
    model, version, name = key
    verdict = change.verdict
    identity = f"{model}/{version}/{role}/{name}/{change.time_ms}/{verdict.state}/{verdict.score!r}"
    signal_id = content_hash(identity.encode())
    return SignalChanged(
        signal_id=signal_id,
        model=model,
        version=version,
        role=role,
        detector=name,
        kind=config.kind,
        family=family,
        previous=previous,
        verdict=verdict,
        event_time_ms=change.time_ms,
        row=address,
        config_hash=contract.hash,
        pages=standing is not None and standing.pages,
        standing="" if standing is None else in_words(standing),
        trace_id=signal_id[:32],
    )


def written(signal: SignalChanged) -> Out:
    """The record that carries it, with the trace that what is decided on it will have."""
    text = signal.model_dump_json().encode()
    return Out("signals", signal.model.encode(), text, None, trace_headers(signal.trace_id))
