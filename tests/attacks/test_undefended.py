"""The same attacks with the defence off: they work, so its tests test something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bentoml_secure.testing.rogue.streams import pickle_payload
from tests.attacks import raw
from tests.harness import Project, start_http_server

PICKLE = "application/vnd.bentoml+pickle"


@pytest.fixture
def plain_url(attacked_project: Project) -> Iterator[str]:
    attacked_project.add(Path(__file__).with_name("plain.py"))
    with start_http_server(
        "plain:Plain",
        attacked_project,
        attacked_project.folder / "home-plain",
        service_name="PlainRunner",
    ) as served:
        yield served.url


def test_a_runner_without_our_door_runs_what_a_stranger_sends(
    plain_url: str, tmp_path: Path
) -> None:
    for name, headers in {
        "named": [("Content-Type", PICKLE)],
        # BentoML reads the first, a guard that makes a dict of them sees the last.
        "twice": [("Content-Type", PICKLE), ("Content-Type", "application/json")],
    }.items():
        marker = tmp_path / name
        raw.post(plain_url, "/double", pickle_payload(marker), headers)
        assert marker.is_dir()
