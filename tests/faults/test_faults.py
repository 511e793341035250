"""The short form of run.py: each fault once."""

import pytest
from catalogue import FAULTS
from injection import Fault, inject


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_is_lost(fault: Fault, tmp_path) -> None:
    if reason := fault.unfit():
        pytest.skip(reason)
    line = inject(fault, 1, tmp_path)
    assert line["lost"] == {}, line
    assert sum(line["happened"].values()) == 1
