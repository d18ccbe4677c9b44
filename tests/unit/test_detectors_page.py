"""The page about detectors and their catalogue say what the specs say."""

from __future__ import annotations

from pathlib import Path

from detectors.registry import KINDS, spec_class
from detectors.tools import calibrate, catalogue

PAGE = Path(catalogue.__file__).resolve().parents[1] / "README.md"


def test_the_page_lists_every_kind_with_its_own_figures() -> None:
    """The table of the README is what the specs say now: `python -m detectors list --markdown` prints it anew."""
    page = PAGE.read_text()
    for line in catalogue.markdown(catalogue.entries()).splitlines():
        assert line in page, f"detectors/README.md lacks this row; paste it anew:\n{line}"
    above = page[: page.index("| kind | reads |")]
    assert [kind for kind in KINDS if f"`{kind}`" not in above] == [], "kinds the text never mentions"


def test_knobs_are_options() -> None:
    """Every kind that names a knob has a number of that name, and a direction in which it is stricter."""
    for kind in KINDS:
        spec = spec_class(kind)
        if spec.knob is not None:
            assert spec.knob in spec.model_fields
            assert isinstance(calibrate.is_probability(spec.model_construct(), spec.knob), bool)
