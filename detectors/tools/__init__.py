"""Around detectors: the catalogue of kinds, trials on files, what a promise is worth on data."""
