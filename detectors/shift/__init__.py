"""Shifts of inputs and scores, a column at a time: e-detectors, tests and distances a window, CUSUM."""
