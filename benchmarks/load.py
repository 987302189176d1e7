"""A load of HTTP/1.1 requests over connections that are kept open, from one asyncio loop."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Load:
    """The answers of a round."""

    seconds: float
    """The seconds of the whole round."""
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        return {
            "requests": len(ordered),
            "per_second": len(ordered) / self.seconds,
            "p50_ms": 1e3 * statistics.median(ordered),
            "p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))],
            "statuses": self.statuses,
        }


def request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """The bytes of one request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def round_of(port: int, sent: bytes, *, connections: int, seconds: float) -> Load:
    """Repeats the same request on every connection, for `seconds`."""
    return asyncio.run(_round(port, sent, connections, seconds))


async def _round(port: int, sent: bytes, connections: int, seconds: float) -> Load:
    load = Load(0.0)
    begin = time.perf_counter()
    await asyncio.gather(*(_connection(port, sent, begin + seconds, load) for _ in range(connections)))
    load.seconds = time.perf_counter() - begin
    return load


async def _connection(port: int, sent: bytes, end: float, load: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while (begin := time.perf_counter()) < end:
            writer.write(sent)
            status, _ = await answer(reader)
            load.latencies.append(time.perf_counter() - begin)
            load.statuses[status] = load.statuses.get(status, 0) + 1
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    status = int(head[0].split()[1])
    headers = dict(line.lower().split(b": ", 1) for line in head[1:] if line)
    if status in {304, 204}:
        return status, b""
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return status, body
    return status, await reader.readexactly(int(headers[b"content-length"]))
