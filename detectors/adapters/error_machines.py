"""Detectors of errors, 0 or 1: the classic tests of whether a model has begun to decide wrongly more often.

    Ddm          Gama, Medas, Castillo and Rodrigues, "Learning with drift detection", SBIA 2004
    Eddm         Baena-Garcia et al., "Early drift detection method", 2006
    HddmA, HddmW Frias-Blanco et al., "Online and non-parametric drift detection methods based on Hoeffding's bounds",
                 IEEE TKDE 2015

Each takes the decisions of river's class of that name, error for error.

>>> machine = Ddm()
>>> errors = [float(at % 10 == 0) for at in range(300)] + [float(at % 2) for at in range(300)]
>>> [at for at, error in enumerate(errors) if machine.update(error) == ALARM]
[327]
"""

from __future__ import annotations

import math

import msgspec

from detectors.adapters.machines import ALARM, QUIET, WARNING, Level, StructMachine


class DdmState(msgspec.Struct):
    """The error rate, and its smallest value so far with that value's standard deviation."""

    rows: int = 0
    rate: float = 0.0
    rate_min: float = 0.0
    sd_min: float = 0.0
    sum_min: float = math.inf


class Ddm(StructMachine):
    """Of errors, 0 or 1."""

    state_type = DdmState

    def __init__(
        self, warm_start: int = 30, warning_threshold: float = 2.0, drift_threshold: float = 3.0
    ) -> None:
        super().__init__()
        self._warm_start = warm_start
        self._warning = warning_threshold
        self._drift = drift_threshold

    def update(self, value: float) -> Level:
        state = self.state
        state.rows += 1
        state.rate += (1.0 / state.rows) * (value - state.rate)
        if state.rows <= self._warm_start:
            return QUIET
        rate = state.rate
        # Rounding may carry a rate of one past one.
        sd = math.sqrt(max(0.0, rate * (1 - rate) / state.rows))
        if rate + sd <= state.sum_min:
            state.rate_min, state.sd_min = rate, sd
            state.sum_min = rate + sd
        if rate + sd > state.rate_min + self._drift * state.sd_min:
            self.state = DdmState()
            return ALARM
        return WARNING if rate + sd > state.rate_min + self._warning * state.sd_min else QUIET


class EddmState(msgspec.Struct):
    """Mean and sum of squares of the rows between errors; ``reach_max``: the greatest mean plus two deviations."""

    rows: int = 0
    errors: int = 0
    last_error: int = 0
    mean: float = 0.0
    squares: float = 0.0
    reach_max: float = -1.0
    warned: bool = False


class Eddm(StructMachine):
    """Of errors, 0 or 1; warns below ``alpha`` and alarms below ``beta`` of the greatest distance between errors."""

    state_type = EddmState

    def __init__(self, warm_start: int = 30, alpha: float = 0.95, beta: float = 0.9) -> None:
        super().__init__()
        self._warm_start = warm_start
        self._alpha = alpha
        self._beta = beta

    def update(self, value: float) -> Level:
        state = self.state
        state.rows += 1
        if value != 1:
            return WARNING if state.warned else QUIET
        state.errors += 1
        distance = state.rows - state.last_error
        state.last_error = state.rows
        before = state.mean
        state.mean += (1.0 / state.errors) * (distance - before)
        state.squares += (distance - before) * (distance - state.mean)
        if state.rows > self._warm_start:
            variance = state.squares / (state.errors - 1) if state.errors > 1 else 0.0
            reach = state.mean + 2 * max(0.0, variance) ** 0.5
            if reach > state.reach_max:
                state.reach_max = reach
            elif state.errors > self._warm_start:
                level = reach / state.reach_max
                if level < self._beta:
                    self.state = EddmState()
                    return ALARM
                state.warned = level < self._alpha
        return WARNING if state.warned else QUIET


class HddmAState(msgspec.Struct):
    """Rows and mean of all; and of the part whose bound was lowest, and highest."""

    rows: int = 0
    mean: float = 0.0
    low_rows: int = 0
    low_mean: float = 0.0
    high_rows: int = 0
    high_mean: float = 0.0


class HddmA(StructMachine):
    """Of values in [0, 1]: has the mean risen (or moved, if two-sided) since it was lowest?"""

    state_type = HddmAState

    def __init__(
        self,
        drift_confidence: float = 0.001,
        warning_confidence: float = 0.005,
        two_sided_test: bool = False,
    ) -> None:
        super().__init__()
        self._nats = math.log(1.0 / drift_confidence)
        self._drift = math.log(2.0 / drift_confidence)
        self._warning = math.log(2.0 / warning_confidence)
        self._two_sided = two_sided_test

    def update(self, value: float) -> Level:
        state = self.state
        state.rows += 1
        state.mean += (1.0 / state.rows) * (value - state.mean)
        if not state.low_rows:
            state.low_rows, state.low_mean = state.rows, state.mean
        if not state.high_rows:
            state.high_rows, state.high_mean = state.rows, state.mean
        bound = self._bound(state.rows)
        if state.low_mean + self._bound(state.low_rows) >= state.mean + bound:
            state.low_rows, state.low_mean = state.rows, state.mean
        if state.high_mean - self._bound(state.high_rows) <= state.mean - bound:
            state.high_rows, state.high_mean = state.rows, state.mean
        level = self._moved(state.low_rows, state.mean - state.low_mean)
        if self._two_sided:
            level = max(level, self._moved(state.high_rows, state.high_mean - state.mean))
        if level == ALARM:
            self.state = HddmAState()
        return level

    def _bound(self, rows: int) -> float:
        return math.sqrt(1.0 / (2 * rows) * self._nats)

    def _moved(self, since: int, move: float) -> Level:
        rows = self.state.rows
        if since == rows:
            return QUIET
        m = (rows - since) / since * (1.0 / rows)
        if move >= math.sqrt(m / 2 * self._drift):
            return ALARM
        return WARNING if move >= math.sqrt(m / 2 * self._warning) else QUIET


class Faded(msgspec.Struct):
    """An exponentially weighted mean and the sum of its squared weights."""

    mean: float = 0.0
    weight: float = 1.0
    begun: bool = False

    def add(self, value: float, fading: float) -> None:
        """river's mean begins anew from each value while it is zero; so does this, or decisions would differ."""
        self.mean = value if self.mean == 0.0 else fading * value + (1.0 - fading) * self.mean
        self.weight = fading * fading + (1 - fading) ** 2 * self.weight
        self.begun = True

    def copy(self) -> Faded:
        """The same, apart."""
        return Faded(self.mean, self.weight, self.begun)


class HddmWState(msgspec.Struct):
    """All values; those before and since the lowest bound (``rise``), those before and since the highest (``fall``)."""

    total: Faded = msgspec.field(default_factory=Faded)
    rise_before: Faded = msgspec.field(default_factory=Faded)
    rise_since: Faded = msgspec.field(default_factory=Faded)
    rise_cut: float = math.inf
    fall_before: Faded = msgspec.field(default_factory=Faded)
    fall_since: Faded = msgspec.field(default_factory=Faded)
    fall_cut: float = -math.inf


class HddmW(StructMachine):
    """Of values in [0, 1], recent ones weighing more: ``lambda_val`` is the weight of the newest."""

    state_type = HddmWState

    def __init__(
        self,
        drift_confidence: float = 0.001,
        warning_confidence: float = 0.005,
        lambda_val: float = 0.05,
        two_sided_test: bool = False,
    ) -> None:
        super().__init__()
        self._drift = math.log(1 / drift_confidence)
        self._warning = math.log(1 / warning_confidence)
        self._fading = lambda_val
        self._two_sided = two_sided_test

    def update(self, value: float) -> Level:
        state, fading = self.state, self._fading
        state.total.add(value, fading)
        bound = math.sqrt(state.total.weight * self._drift / 2)
        if state.total.mean + bound < state.rise_cut:
            state.rise_cut = state.total.mean + bound
            state.rise_before, state.rise_since = state.total.copy(), Faded()
        else:
            state.rise_since.add(value, fading)
        level = self._moved(state.rise_before, state.rise_since)
        if state.total.mean - bound > state.fall_cut:
            state.fall_cut = state.total.mean - bound
            state.fall_before, state.fall_since = state.total.copy(), Faded()
        else:
            state.fall_since.add(value, fading)
        if self._two_sided:
            level = max(level, self._moved(state.fall_since, state.fall_before))
        if level == ALARM:
            self.state = HddmWState()
        return level

    def _moved(self, low: Faded, high: Faded) -> Level:
        if not (low.begun and high.begun):
            return QUIET
        weight, move = low.weight + high.weight, high.mean - low.mean
        if move > math.sqrt(weight * self._drift / 2):
            return ALARM
        return WARNING if move > math.sqrt(weight * self._warning / 2) else QUIET
