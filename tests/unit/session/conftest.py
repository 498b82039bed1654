from __future__ import annotations

import pytest

from tests.unit.session.session_parts import Ground


@pytest.fixture
def ground() -> Ground:
    return Ground()
