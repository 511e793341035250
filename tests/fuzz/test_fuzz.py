"""The short form: what is spoiled is refused by one of the program's own errors. The long form is tests/fuzz/run.py."""

import pytest
from fuzzing import fuzz
from targets import TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_spoiled_files_are_refused_in_words(name):
    outcome = fuzz(name, TARGETS[name], range(100))
    assert not outcome.failed, "".join(text for _, _, text in outcome.failed.values())
    assert outcome.refused + outcome.read == 100
