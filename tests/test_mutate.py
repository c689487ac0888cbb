"""`mutate.py` follows the code: its lists name files and expressions that exist."""

import mutate
import pytest


@pytest.mark.parametrize("module", mutate.OWN)
def test_each_file_has_mutants_and_tests(module):
    assert mutate.mutants(module)
    assert all(mutate.files(name) for name in mutate.OWN[module].split(" -k ")[0].split())
