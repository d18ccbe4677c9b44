"""What there is to choose from, for people and programs: the figures that every kind states of itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detectors.base import Spec
from detectors.registry import KINDS, spec_class


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind. ``reads``: its streams, each with the family of its verdicts there; ``needs``: options without a default."""

    kind: str
    reads: Mapping[str, str]
    cost_ns: int
    state: str
    restart: str
    pages: str
    sees: str
    blind_to: str
    needs: tuple[str, ...]


def entry(kind: str) -> Entry:
    """What ``kind`` says of itself. Raises ConfigurationError that lists what there is."""
    spec = spec_class(kind)
    return Entry(
        kind=kind,
        reads={stream: str(family) for stream, family in spec.streams.items()},
        cost_ns=spec.cost_ns,
        state=spec.state_size,
        restart=spec.restart,
        pages=_pages(spec),
        sees=spec.sees,
        blind_to=spec.blind_to,
        needs=tuple(name for name, field in spec.model_fields.items() if field.is_required()),
    )


def _pages(spec: type[Spec]) -> str:
    """``yes``: its false alarms can be bounded; ``if fitted``: when its knob fits the budget on the reference; ``never``."""
    if spec.knob is not None:
        return "if fitted"
    return "yes" if spec.pages else "never"


def entries() -> list[Entry]:
    """Every kind, in the registry's order, which is by family."""
    return [entry(kind) for kind in KINDS]


def cost(ns: int) -> str:
    """``60 ns``, ``3.5 us``, ``0.14 ms``."""
    return (
        f"{ns} ns" if ns < 1_000 else f"{ns / 1_000:.3g} us" if ns < 100_000 else f"{ns / 1_000_000:.2g} ms"
    )


def as_json(found: Entry) -> dict[str, Any]:
    """The entry as JSON, costs in nanoseconds."""
    return asdict(found)


def markdown(found: Sequence[Entry]) -> str:
    """The table of ``detectors/README.md``, which a test holds to this."""
    lines = [
        "| kind | reads | cost a row | state | after a restart | may page | sees | blind to |",
        "|---|---|---:|---|---|---|---|---|",
    ]
    for e in found:
        reads = ", ".join(e.reads)
        after = "goes on" if e.restart == "exact" else "learns again"
        cells = (f"`{e.kind}`", reads, cost(e.cost_ns), e.state, after, e.pages, e.sees, e.blind_to)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def documentation(kind: str) -> str:
    """The kind's module docstring, then its options' own."""
    spec = spec_class(kind)
    module = sys.modules[spec.__module__].__doc__ or ""
    own = inspect.getdoc(spec) or ""
    return f"{inspect.cleandoc(module)}\n\n{own}".strip()


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its type in words, its default as JSON, and what it does."""

    name: str
    type: str
    default: Any
    required: bool
    description: str
    knob: bool


def options(kind: str) -> list[Option]:
    """The options of ``kind``, in the order of its spec."""
    spec = spec_class(kind)
    schema = spec.model_json_schema()
    required = set(schema.get("required", ()))
    return [
        Option(
            name,
            _type(field, schema.get("$defs", {}))
            + (", or text like 6h" if "parse_duration_ms" in repr(spec.model_fields[name]) else ""),
            field.get("default"),
            name in required,
            field.get("description", ""),
            name == spec.knob,
        )
        for name, field in schema.get("properties", {}).items()
    ]


_BOUNDS = (
    ("minimum", ">="),
    ("exclusiveMinimum", ">"),
    ("maximum", "<="),
    ("exclusiveMaximum", "<"),
)


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words: ``number > 0 or null``."""
    if "$ref" in field:
        return _type(definitions.get(field["$ref"].rpartition("/")[2], {}), definitions)
    if "anyOf" in field:
        return " or ".join(_type(choice, definitions) for choice in field["anyOf"])
    if "enum" in field:
        return " or ".join(f'"{value}"' for value in field["enum"])
    if field.get("type") == "array":
        items = field.get("items", {})
        return f"list of {_type(items, definitions)}" if items else "list"
    bounds = [f"{sign} {field[key]:g}" for key, sign in _BOUNDS if key in field]
    return " ".join([str(field.get("type", "any")), ", ".join(bounds)]).strip()
