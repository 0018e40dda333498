"""A share of `make fuzz` that takes seconds. The seed stays, or a red build would be a matter of luck."""
import pytest
from fuzz import READERS, fuzz


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(name):
    n = 15 if name in ("scan", "scan.mat") else 40  # these two take longest
    became, findings = fuzz(name, n, seed=0)
    assert not findings, findings
    assert became.total() == n
