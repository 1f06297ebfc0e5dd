"""What a peer counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ..errors import InputError
from ..writing import reason

METHODS = ("Answer", "Infer", "Health")
LATENCIES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Counters of one peer, in a registry of their own, so that several can live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        given: dict[str, Any] = {"namespace": "fedexperts_peer", "registry": self.registry}
        self._requests = Counter("requests", "Requests that were answered.", ["method"], **given)
        self._refused = Counter("refused", "Requests that were refused.", ["reason"], **given)
        self._bytes = Counter("bytes", "Bytes of messages between peers.", ["direction"], **given)
        self._latency = Histogram("latency_seconds", "From a request to its answer.", ["method"], buckets=LATENCIES_S, **given)
        self._answers = Counter(
            "expert_answers", "Images by expert that was picked, and what came of it.", ["expert", "outcome"], **given
        )
        self._fallbacks = Counter("fallbacks", "Images that the own expert answered alone, for no pick did.", **given)
        self._suspected = Gauge("suspected", "Whether a peer is skipped.", ["expert"], **given)
        # children that every request needs, looked up once
        self._sent, self._received = self._bytes.labels("sent"), self._bytes.labels("received")
        self._methods = {name: (self._requests.labels(name), self._latency.labels(name)) for name in METHODS}

    def serve(self, host: str, port: int) -> Any:
        """Answer at http://host:port/metrics; returns the server, whose ``shutdown`` ends it.

        Raises:
            InputError: the port cannot be had.
        """
        try:
            server, _ = start_http_server(port, host, self.registry)
        except (OSError, OverflowError) as error:
            raise InputError(f"--metrics {host}:{port}: cannot be had ({reason(error)}); name another port") from error
        return server

    def answered(self, method: str, seconds: float) -> None:
        """A request was."""
        requests, latency = self._methods[method]
        requests.inc()
        latency.observe(seconds)

    def refused(self, why: str) -> None:
        """A request was."""
        self._refused.labels(why).inc()

    def sent(self, size_B: int) -> None:
        """Bytes, to peers."""
        self._sent.inc(size_B)

    def received(self, size_B: int) -> None:
        """Bytes, from peers."""
        self._received.inc(size_B)

    def expert(self, expert: int, outcome: str, images: int) -> None:
        """What came of picking an expert: "home", "answered" or "absent"."""
        self._answers.labels(str(expert), outcome).inc(images)

    def fallback(self, images: int) -> None:
        """The own expert has answered alone."""
        self._fallbacks.inc(images)

    def suspected(self, client: int, is_so: bool) -> None:
        """A peer is skipped, or no longer."""
        self._suspected.labels(str(client)).set(is_so)
