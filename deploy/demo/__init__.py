"""The demonstration: a year of real flights told through the whole system, with nothing scripted."""
