"""The connections behind ``fetch``: each goes on where the last one ended, until the file is whole or hope is lost."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from medloom.errors import ResourceError
from medloom.files import write_json

BLOCK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30.0
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_AGAIN = "Run the same command again: it goes on where it stopped"


def facts_of(part: Path) -> Path:
    """Where it is written down of which version of which address ``part`` is a part."""
    return part.with_name(f"{part.name}.json")


class Transfer:
    """All attempts of one call; what came stands in ``part``, which ``sink`` appends to."""

    def __init__(
        self,
        url: str,
        part: Path,
        sink: IO[bytes],
        progress: Callable[[int, int], None] | None,
        pause: Callable[[float], None],
    ) -> None:
        self.url, self.part, self.sink = url, part, sink
        self.progress, self.pause = progress, pause
        self.came = 0
        self.opener = _opener()

    def run(self) -> int:
        """Bring the rest; returns how many bytes came.

        Raises:
            ResourceError: D130, D131, T404 (see ``fetch``).
            OSError: the disk refuses.
        """
        failures = 0
        while True:
            before = self.came
            try:
                if self._attempt():
                    return self.came
                problem: Exception = ConnectionError("the connection ended early")
            except urllib.error.HTTPError as answer:
                answer.close()
                if answer.code not in _BUSY:
                    raise self._refused(f"the server answers {answer.code} ({answer.reason})") from None
                problem = answer
            except (OSError, http.client.HTTPException) as trouble:
                if isinstance(trouble, OSError) and trouble.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                problem = trouble
            failures = 1 if self.came > before else failures + 1
            if failures >= ATTEMPTS or _hopeless(problem):
                raise self._gave_up(problem)
            self.pause(0.5 * 2 ** (failures - 1))

    def _attempt(self) -> bool:
        """One connection. False when it ended before the announced length."""
        start, known = self._start()
        if start and known.get("bytes") == start:
            return True  # stopped after the last byte
        request = urllib.request.Request(self.url, headers={"User-Agent": "medloom", "Accept-Encoding": "identity"})
        if start:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", known["tag"])
        try:
            answer = self.opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as refusal:
            if refusal.code == 416 and start:
                refusal.close()
                self._restart()  # longer than the file there, so it is of another one
                return False
            raise
        with answer:
            whole = _content_range(answer.headers.get("Content-Range"), start) if answer.status == 206 else None
            if start and whole is None:
                self._restart()
                start = 0
                if answer.status == 206:
                    return False
            length = answer.headers.get("Content-Length", "")
            total = whole if whole is not None else int(length) if length.isdigit() else None
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            write_json(facts_of(self.part), {"url": self.url, "tag": tag, "bytes": total})
            self._room(None if total is None else total - start)
            return self._copy(answer, start, total)

    def _copy(self, answer: Any, start: int, total: int | None) -> bool:
        at, first = start, self.came
        while block := answer.read(BLOCK):
            if total is not None and at + len(block) > total:
                raise self._refused("it sends more than it announced")
            self.sink.write(block)
            at, self.came = at + len(block), self.came + len(block)
            if self.progress is not None and total is not None:
                self.progress(self.came, first + total - start)
        self.sink.flush()
        return total is None or at == total

    def _start(self) -> tuple[int, dict[str, Any]]:
        """Where to go on. Without a version mark the server could mix two files, so then it begins anew."""
        self.sink.flush()
        size = self.part.stat().st_size
        known: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(facts_of(self.part).read_text(encoding="utf-8"))
        if size and not (isinstance(known, dict) and known.get("url") == self.url and known.get("tag")):
            self._restart()
            return 0, {}
        return size, known

    def _restart(self) -> None:
        self.sink.truncate(0)

    def _room(self, wanted: int | None) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if wanted is not None and wanted > free:
            problem = f"{wanted / 1e6:,.0f} MB are to come, {free / 1e6:,.0f} MB are free"
            raise ResourceError("T404", self.part.parent, problem, "Free space there, or name another folder")

    def _refused(self, what: str) -> ResourceError:
        return ResourceError("D131", self.url, what, "Look whether the address is right; --url names a mirror")

    def _gave_up(self, problem: Exception) -> ResourceError:
        if isinstance(problem, urllib.error.HTTPError):
            return self._refused(f"the server answers {problem.code} ({problem.reason}), {ATTEMPTS} times")
        reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
        if isinstance(reason, str) and "redirection" in reason:
            return self._refused(f"it sends elsewhere than to a web address ({reason})")
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        size = self.part.stat().st_size
        host = urllib.parse.urlsplit(self.url).netloc
        if size:
            return ResourceError("D130", self.url, f"cut off after {size:,} bytes ({told}), which are kept", _AGAIN)
        remedy = f"Connect this machine, name a mirror with --url, or bring the file from {self.url} by hand"
        return ResourceError("D130", host, f"no connection ({told})", remedy)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects from web address to web address, never from https to http."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
                         ) -> urllib.request.Request | None:  # fmt: skip
        before, after = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            fp.close()
            raise urllib.error.URLError(f"a redirection to {after or 'nowhere'}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Http and https alone: the usual opener also reads ftp, files and data addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _WebOnly(),
    ):
        opener.add_handler(handler)
    return opener


def _hopeless(problem: Exception) -> bool:
    """Whether waiting a few seconds cannot help: nobody of that name, nobody at that door, a forbidden redirect."""
    if isinstance(problem, urllib.error.HTTPError):
        return False
    reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
    return isinstance(reason, str | ConnectionRefusedError) or type(reason).__name__ in ("gaierror", "SSLError")


def _content_range(header: str | None, start: int) -> int | None:
    """Total length of ``bytes 100-199/200`` when it begins at ``start``, else None."""
    unit, _, rest = (header or "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    fits = unit == "bytes" and first.isdigit() and int(first) == start and total.isdigit()
    return int(total) if fits else None
