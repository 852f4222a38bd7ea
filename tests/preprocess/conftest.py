"""Media made once, and data sets made of them."""

import pytest
from public_data import make_stock


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    return make_stock(tmp_path_factory.mktemp("stock"))
