"""Every study of the list can be found and says what it is."""

import pytest

from vbc.codec.research.run import parse_budget
from vbc.codec.research.studies import STUDIES, find_study

LONGEST_S = 45 * 60


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_study(name: str) -> None:
    study = find_study(name)
    assert parse_budget(study.budget) <= LONGEST_S
    assert study.about
    assert "thesis" in study.source
    assert callable(study.run)
