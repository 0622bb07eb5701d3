"""What several integration tests share."""

from collections.abc import Iterator

import pytest

from tests.helpers.hub import Hub, serving


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with nothing on it yet: `lay_out(hub.root, families)` puts models and SAEs there, once."""
    with serving(tmp_path_factory.mktemp("hub")) as running:
        yield running
