"""The network and the cache under endorsements: bounds, addresses, expiry."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bentoml_secure.attestation.endorsements.cache import CachedFetch
from bentoml_secure.attestation.endorsements.fetching import (
    HttpsFetch,
    NotFoundError,
    Response,
    require_ok,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)
from tests.unit.attestation.vendor_services import Service, answer, serve

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
URL = "https://service.example/path"


@pytest.fixture
def service() -> Iterator[Service]:
    with serve() as running:
        yield running


class TestNetwork:
    def test_an_answer_with_its_headers(self, service: Service) -> None:
        service.answers["/a"] = answer(b"body", X_Chain="one")
        got = HttpsFetch()(f"{service.url}/a")
        assert (got.status, got.body) == (200, b"body")
        assert got.headers["x-chain"] == "one"

    @pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
    def test_an_error_is_an_answer_too(self, service: Service, status: int) -> None:
        service.answers["/a"] = Response(status=status, body=b"why\n")
        got = HttpsFetch()(f"{service.url}/a")
        assert (got.status, got.body) == (status, b"why\n")
        with pytest.raises(UnavailableError, match=f"status {status}: why"):
            require_ok(got, URL)

    def test_what_is_not_there_is_told_apart(self) -> None:
        with pytest.raises(NotFoundError, match="does not know"):
            require_ok(Response(status=404), URL)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_nothing_leads_elsewhere(self, service: Service, status: int) -> None:
        with serve() as other:
            other.answers["/a"] = answer(b"elsewhere")
            service.answers["/a"] = Response(
                status=status, headers={"Location": f"{other.url}/a"}
            )
            got = HttpsFetch()(f"{service.url}/a")
            assert got.status == status
            assert other.asked == []
        with pytest.raises(UnavailableError, match=f"status {status}"):
            require_ok(got, URL)

    def test_a_long_answer_is_refused(self, service: Service) -> None:
        service.answers["/a"] = answer(b"x" * 1000)
        assert len(HttpsFetch(max_bytes=1000)(f"{service.url}/a").body) == 1000
        with pytest.raises(UnavailableError, match="longer than 999"):
            HttpsFetch(max_bytes=999)(f"{service.url}/a")

    def test_an_answer_byte_by_byte_is_not_waited_for(self, service: Service) -> None:
        service.answers["/a"] = answer(b"x" * 100)
        service.seconds_between_bytes = 0.05
        with pytest.raises(UnavailableError, match=r"longer than 0\.2 s"):
            HttpsFetch(timeout_seconds=0.2)(f"{service.url}/a")

    def test_nobody_there(self) -> None:
        with pytest.raises(UnavailableError, match="no answer"):
            # Port 9 of this machine: nothing listens there.
            HttpsFetch(timeout_seconds=2)("http://127.0.0.1:9/a")

    @pytest.mark.parametrize(
        "url",
        [
            "http://service.example/a",
            "http://127.0.0.1.service.example/a",
            "http://user@service.example/a",
            "file:///etc/hostname",
            "ftp://127.0.0.1/a",
            "https://",
            "service.example/a",
            "https://[::1/a",
            "https://service.example:port/a",
            "",
        ],
    )
    def test_addresses_that_are_not_asked(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match=r"want https|is no address"):
            HttpsFetch()(url)


class Counted:
    """A service in memory that counts; ``expires_at`` of its answers is given."""

    def __init__(self) -> None:
        self.count = 0
        self.status = 200

    def __call__(self, url: str) -> Response:
        self.count += 1
        return Response(
            status=self.status, headers={"h": "v"}, body=f"{url} {self.count}".encode()
        )


@pytest.fixture
def counted() -> Counted:
    return Counted()


def cached(counted: Counted, folder: Path | None, now: datetime = NOW) -> CachedFetch:
    return CachedFetch(fetch=counted, clock=lambda: now, folder=folder)


def in_a_day(_: Response) -> datetime:
    return NOW + DAY


class TestCache:
    def test_it_is_asked_once_until_it_expires(
        self, counted: Counted, tmp_path: Path
    ) -> None:
        folder = tmp_path / "a" / "cache"
        first = cached(counted, folder)(URL, in_a_day)
        again = cached(counted, folder, NOW + DAY - timedelta(seconds=1))
        assert again(URL, in_a_day) == first
        assert counted.count == 1
        late = cached(counted, folder, NOW + DAY)
        assert late(URL, lambda _: NOW + 2 * DAY).body.endswith(b" 2")
        assert counted.count == 2

    def test_it_is_the_owner_s(self, counted: Counted, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        cached(counted, folder)(URL, in_a_day)
        (entry,) = folder.iterdir()
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_none_keeps_none(self, counted: Counted) -> None:
        get = cached(counted, None)
        get(URL, in_a_day)
        get(URL, in_a_day)
        assert counted.count == 2

    def test_refresh_asks_and_keeps(self, counted: Counted, tmp_path: Path) -> None:
        cached(counted, tmp_path)(URL, in_a_day)
        get = CachedFetch(
            fetch=counted, clock=lambda: NOW, folder=tmp_path, refresh=True
        )
        assert get(URL, in_a_day).body.endswith(b" 2")
        assert cached(counted, tmp_path)(URL, in_a_day).body.endswith(b" 2")

    def test_what_has_expired_already_is_not_kept(
        self, counted: Counted, tmp_path: Path
    ) -> None:
        cached(counted, tmp_path)(URL, lambda _: NOW)
        assert list(tmp_path.iterdir()) == []

    def test_errors_and_what_does_not_parse_are_not_kept(
        self, counted: Counted, tmp_path: Path
    ) -> None:
        def refuse(_: Response) -> datetime:
            raise MalformedInputError("not this")

        with pytest.raises(MalformedInputError, match=f"{URL}: not this"):
            cached(counted, tmp_path)(URL, refuse)
        counted.status = 503
        with pytest.raises(UnavailableError, match="status 503"):
            cached(counted, tmp_path)(URL, in_a_day)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"url": "https://other.example/"},
            {"headers": []},
            {"headers": {"a": 1}},
            {"body": "!"},
            {"expires_at": "later"},
            {"more": 1},
        ],
    )
    def test_a_spoiled_entry_is_asked_for_anew(
        self,
        counted: Counted,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        change: dict[str, object],
    ) -> None:
        cached(counted, tmp_path)(URL, in_a_day)
        (entry,) = tmp_path.iterdir()
        entry.write_text(json.dumps(json.loads(entry.read_text()) | change))
        with caplog.at_level(logging.WARNING):
            assert cached(counted, tmp_path)(URL, in_a_day).body.endswith(b" 2")
        assert "is not used" in caplog.text
        assert cached(counted, tmp_path)(URL, in_a_day).body.endswith(b" 2")

    def test_a_folder_that_cannot_be_is_said(
        self, counted: Counted, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="cannot be written"):
            cached(counted, tmp_path / "file" / "cache")(URL, in_a_day)
