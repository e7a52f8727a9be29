"""Fetching from a server that fails in every way: what comes is whole and checked, or nothing stands under the name."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from file_server import CONTENT, MD5, Server

from medloom.data import fetch as module
from medloom.data import transfer
from medloom.data.fetch import fetch
from medloom.errors import DataError, MedloomError, ResourceError, UsageError


def get(server: Server, target: Path, md5: str | None = MD5) -> Any:
    return fetch(server.url, target, md5=md5, pause=lambda _: None)


def refused(server: Server, target: Path, kind: type[MedloomError], code: str, **options: Any) -> MedloomError:
    with pytest.raises(kind) as caught:
        get(server, target, **options)
    assert caught.value.code == code
    assert not target.exists()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_whole_file_with_its_sums_and_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = fetch(server.url, tmp_path / "new" / "set.npz", md5=MD5, progress=lambda *at: seen.append(at))
    assert found.path.read_bytes() == CONTENT
    assert found.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (found.md5, found.checked, found.came, found.bytes) == (MD5, True, len(CONTENT), len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in found.path.parent.iterdir()] == ["set.npz"]
    again = get(server, found.path)
    assert (again.came, len(server.asked)) == (0, 1)


def test_a_cut_connection_is_taken_up_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    assert get(server, tmp_path / "set.npz").path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_D130_cut_off_for_good_keeps_what_came_and_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000] + [0] * 5
    problem = refused(server, tmp_path / "set.npz", ResourceError, "D130")
    assert "100,000 bytes" in problem.problem
    assert (tmp_path / "set.npz.part").stat().st_size == 100_000
    server.cuts, server.asked = [], []
    assert get(server, tmp_path / "set.npz").came == 200_000
    assert server.asked == ["bytes=100000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["set.npz"]


def test_a_part_of_another_version_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000] + [0] * 5
    refused(server, tmp_path / "set.npz", ResourceError, "D130")
    server.cuts, server.tag, server.content = [], '"v2"', CONTENT[::-1]
    md5 = hashlib.md5(server.content).hexdigest()
    assert get(server, tmp_path / "set.npz", md5).path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("change", ["no ranges", "no tag", "other address", "no facts"])
def test_where_going_on_would_be_unsafe_it_begins_anew(server: Server, tmp_path: Path, change: str) -> None:
    target = tmp_path / "set.npz"
    server.tag = None if change == "no tag" else server.tag
    server.cuts = [100_000] + [0] * 5
    refused(server, target, ResourceError, "D130")
    server.ranges = change != "no ranges"
    server.cuts, server.asked = [], []
    facts = tmp_path / "set.npz.part.json"
    if change == "other address":
        facts.write_text(json.dumps({"url": "http://elsewhere/x", "tag": '"v1"', "bytes": 1}))
    if change == "no facts":
        facts.unlink()
    assert get(server, target).path.read_bytes() == CONTENT
    assert server.asked == (["bytes=100000-"] if change == "no ranges" else [None])


def test_a_part_longer_than_the_file_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.npz.part").write_bytes(bytes(400_000))
    (tmp_path / "set.npz.part.json").write_text(json.dumps({"url": server.url, "tag": '"v1"', "bytes": 300_000}))
    server.answers = [416]
    assert get(server, tmp_path / "set.npz").path.read_bytes() == CONTENT


def test_stopped_after_the_last_byte_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.npz.part").write_bytes(CONTENT)
    (tmp_path / "set.npz.part.json").write_text(json.dumps({"url": server.url, "tag": '"v1"', "bytes": 300_000}))
    assert get(server, tmp_path / "set.npz").bytes == 300_000
    assert server.asked == []


def test_D132_a_wrong_sum_keeps_nothing(server: Server, tmp_path: Path) -> None:
    server.content = b"x" + CONTENT[1:]
    problem = refused(server, tmp_path / "set.npz", DataError, "D132")
    assert MD5 in problem.problem
    assert list(tmp_path.iterdir()) == []


def test_D132_a_file_that_is_there_is_not_replaced(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.npz"
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match="D132"):
        get(server, target)
    assert target.read_bytes() == b"mine"
    assert server.asked == []


def test_without_a_published_sum_it_says_so(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path / "set.npz", None).checked is False


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_D131_a_refusal_is_told_at_once(server: Server, tmp_path: Path, code: int) -> None:
    server.answers = [code]
    assert str(code) in refused(server, tmp_path / "new" / "set.npz", ResourceError, "D131").problem
    assert len(server.asked) == 1
    assert not (tmp_path / "new").exists()


def test_D131_a_failing_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers = [500, 503]
    assert get(server, tmp_path / "a.npz").bytes == 300_000
    server.answers, server.asked = [500] * 9, []
    assert "500" in refused(server, tmp_path / "b.npz", ResourceError, "D131").problem
    assert len(server.asked) == 5


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_D131_redirects_to_anything_but_the_web_are_refused(server: Server, tmp_path: Path, location: str) -> None:
    server.answers, server.location = [302] * 9, location
    refused(server, tmp_path / "set.npz", ResourceError, "D131")
    assert len(server.asked) == 1


def test_a_redirect_to_a_web_address_is_followed(server: Server, tmp_path: Path) -> None:
    server.answers, server.location = [302], f"{server.address}/moved.npz"
    assert get(server, tmp_path / "set.npz").bytes == 300_000


def test_D131_redirects_that_never_end(server: Server, tmp_path: Path) -> None:
    server.answers, server.location = [302] * 99, f"{server.address}/round"
    refused(server, tmp_path / "set.npz", ResourceError, "D131")


def test_D130_nobody_there(tmp_path: Path, server: Server) -> None:
    server.address = "http://127.0.0.1:9"
    problem = refused(server, tmp_path / "new" / "set.npz", ResourceError, "D130")
    assert "no connection" in problem.problem
    assert "--url" in problem.remedy
    assert not (tmp_path / "new").exists()


def test_T404_room_is_looked_for_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    refused(server, tmp_path / "set.npz", ResourceError, "T404")
    assert list(tmp_path.iterdir()) == []


def test_T404_a_disk_that_fills_up_keeps_the_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BLOCK", 100_000)
    copied = transfer.Transfer._copy

    def full(self: Any, answer: Any, start: int, total: int | None) -> bool:
        class Sink:
            def write(self, _: bytes) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        self.sink, kept = Sink(), self.sink
        try:
            return copied(self, answer, start, total)
        finally:
            self.sink = kept

    monkeypatch.setattr(transfer.Transfer, "_copy", full)
    refused(server, tmp_path / "set.npz", ResourceError, "T404")
    assert len(server.asked) == 1


def test_T412_two_processes_do_not_fetch_the_same_file(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "set.npz.part").open("ab") as other:
        module._lock(other, tmp_path / "set.npz")
        with pytest.raises(UsageError, match="T412"):
            get(server, tmp_path / "set.npz")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x.npz", "set.npz", ""])
def test_U224_only_web_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="U224"):
        fetch(url, tmp_path / "set.npz")
    assert list(tmp_path.iterdir()) == []
