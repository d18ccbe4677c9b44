"""What is known of a detector's false alarms where it runs: worked out once, kept by content, and put into words.

A detector may need seconds to check its promise on the reference, and many versions share one; so its answer is kept
under the hash of everything it depends on. A kind that breaks here does not page; that is all it loses.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import msgspec

from detectors.base import Context, Spec, Standing
from detectors.tools.calibrate import calibrated, duration, with_knob
from detectors.tools.same import by_identity
from schemas.contracts import Feature, Reference
from schemas.ids import content_hash


class _Known(msgspec.Struct, array_like=True):
    """What is kept: the knob's fitted value, if it has one, and the standing."""

    value: float | None
    standing: Standing


def fitted(
    spec: Spec, context: Context, key: str, cache: MutableMapping[str, bytes]
) -> tuple[Spec, Standing]:
    """What ``calibrated`` makes of ``spec``, from ``cache`` when it was asked for under the same ``standing_key`` before.

    A restarted worker must build from the very same knob, and must not need seconds for it: whoever stores a detector
    stores ``cache[key]`` with it.
    """
    held = cache.get(key)
    if held is not None:
        known = msgspec.msgpack.decode(held, type=_Known)
    else:
        try:
            made, standing = calibrated(spec, context)
            value = None if spec.knob is None or made is spec else getattr(made, spec.knob)
            known = _Known(value, standing)
        except Exception as error:  # noqa: BLE001 - a library's detector may raise anything
            note = f"its false alarms could not be worked out: {type(error).__name__}: {error}"[:500]
            known = _Known(None, Standing(note=note))
        cache[key] = msgspec.msgpack.encode(known)
    if known.value is None or spec.knob is None:
        return spec, known.standing
    return with_knob(spec, spec.knob, known.value) or spec, known.standing


def reference_hash(reference: Reference | None) -> str:
    """Of all that is in it. Slow for a large one: once a version."""
    return "" if reference is None else content_hash(reference.model_dump_json().encode())


@by_identity(4_096)
def _feature_text(feature: Feature) -> str:
    return feature.model_dump_json()


def standing_key(spec: Spec, context: Context, reference: str) -> str:
    """Names all that a standing depends on; ``reference``: the hash of the context's."""
    parts = [
        spec.model_dump_json(),
        repr(
            (
                context.columns,
                context.categories,
                context.stream,
                context.budget_ms,
                context.seed,
                context.decision,
            )
        ),
        repr([_feature_text(feature) for feature in context.features.values()]),
        repr(context.trained_to_ms),
        reference,
    ]
    return f"standing/{spec.kind}/{content_hash('|'.join(parts).encode())[:32]}"


def in_words(standing: Standing) -> str:
    """For whoever is woken: what was promised, what of it was checked, and what is not known."""
    if standing.basis == "none":
        return standing.note
    parts = [{"proved": "bounded by a theorem", "resampled": "set on resampled reference"}[standing.basis]]
    if standing.promised_ms is not None:
        parts.append(f"promised: at most one false alarm in {duration(standing.promised_ms)}")
    if standing.verified_ms > 0:
        parts.append(f"{standing.alarms} in {duration(standing.verified_ms)} of reference in time order")
    if (standing.promised_ms or 0.0) > standing.verified_ms:
        parts.append(
            f"unverified beyond {duration(standing.verified_ms)}" if standing.verified_ms else "unverified"
        )
    return "; ".join([*parts, *([standing.note] if standing.note else [])])
