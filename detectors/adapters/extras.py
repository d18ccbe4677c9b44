"""Classes of other libraries, imported when a configuration first names them, and what to say when they are not there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from schemas.errors import ConfigurationError


def module_of(module: str, install: str) -> ModuleType:
    """A module. Raises ConfigurationError that says what to ``install`` when it cannot be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"{module} cannot be imported ({error}); install it: {install}") from error


def imported(module: str, name: str, install: str) -> Any:
    """``name`` of ``module``. Raises ConfigurationError when either is not there."""
    try:
        return getattr(module_of(module, install), name)
    except AttributeError as error:
        raise ConfigurationError(f"{module} has no {name} ({error}); install it: {install}") from error


def classes(module: str, base: tuple[type, ...], install: str) -> dict[str, Any]:
    """The subclasses of any ``base`` in ``module``, by name. Raises ConfigurationError when it cannot be imported."""
    return {
        name: kind
        for name, kind in vars(module_of(module, install)).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind not in base
    }


def checked_params(kind: Any, params: Mapping[str, Any]) -> None:
    """Raises ValueError naming each parameter that ``kind``'s constructor lacks, and those that it has."""
    known = inspect.signature(kind).parameters
    wrong = sorted(set(params) - set(known))
    if wrong:
        raise ValueError(
            f"{kind.__name__} has no parameter {', '.join(wrong)}; it has: {', '.join(known) or 'none'}"
        )


def made(kind: Any, params: Mapping[str, Any], seed: int) -> Any:
    """An instance; where it draws random numbers and ``params`` name no seed, from ``seed``. Raises ValueError."""
    seeded = {"seed": seed} if "seed" in inspect.signature(kind).parameters else {}
    try:
        return kind(**(seeded | dict(params)))
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{kind.__name__} refuses {dict(params)}: {error}") from error
