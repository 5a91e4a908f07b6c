"""Embedding on a Ray cluster: cases go to workers in small chunks, this process writes the results.

The index is the same as one built in this process (where an embedding does not depend on what else
is in its batch; else up to that rounding): results are taken in the order of the cases, and this
process alone decides the mask values. A chunk whose worker dies is done again by its successor, and
a build that is killed itself goes on from what is stored, as any other.

Ray pickles cases and results on their way between the processes of one user's cluster. Nothing that
is read from a file, an index folder or the network is ever unpickled here.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from medretrieval.errors import MedRetrievalError, UnavailableError, UsageError
from medretrieval.index.cases import Case
from medretrieval.index.embedding import Job, batch_size, embed_cases
from medretrieval.index.png import decode_png, encode_png
from medretrieval.index.vocabulary import Translation, Vocabulary
from medretrieval.index.workspace import DoneCase
from medretrieval.types import Embedder, SlicePolicy, VolumeEmbedder

logger = logging.getLogger(__name__)

AnyEmbedder = Embedder | VolumeEmbedder

INSTALL = 'pip install "medretrieval[ray]" (or: pip install ray==2.60.0)'
_RETRIES = 3  # of a chunk whose worker dies
_RESTARTS = 100  # of a worker: machines may come and go for days
_QUEUED = 2  # chunks at one worker: the next is there when one is done
_AHEAD = 4  # chunks for each worker that wait, are worked on, or are done before an earlier one
_MOST_CASES = 256
_CONNECT_SECONDS = 5.0
_BATCHES = 4  # that a chunk should hold


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """The `engine` of a build that embeds on a Ray cluster.

    Attributes:
        workers: how many processes embed at the same time.
        address: of a running cluster ("auto", or such as "10.0.0.1:6379"); by default what the
            environment variable RAY_ADDRESS says. Without either a cluster of this machine is
            started for the build and stopped after it. The files of the cases must be found under
            the same paths on every machine.
        load: makes the embedder in a worker, once; by default the build's own is sent there.
        gpus: for each worker.
    """

    workers: int = 2
    address: str | None = None
    load: Callable[[], AnyEmbedder] | None = None
    gpus: float = 0

    def __call__(self, job: Job) -> dict[int, str]:
        """Embed and save the wanted cases; return the bad ones with reasons.

        Raises:
            UsageError: fewer than one worker.
            UnavailableError: Ray is not installed, or the cluster cannot be reached.
            MedRetrievalError: workers die whenever they work on the same cases.
        """
        if self.workers < 1:
            raise UsageError(f"workers is {self.workers}; at least 1 is needed")
        ray = _ray()
        if not job.wanted:
            return {}
        workers = min(self.workers, len(job.wanted))
        with _cluster(ray, self.address, self.workers) as processors:
            worker = ray.remote(
                num_cpus=processors,
                num_gpus=self.gpus,
                max_restarts=_RESTARTS,
                max_task_retries=_RETRIES,
            )(_Worker)
            load = self.load or _Given(job.embedder)
            space = job.embedder.identity.space
            actors = [worker.remote(load, space, job.policy) for _ in range(workers)]
            try:
                return _Driver(ray, job, actors).run()
            finally:
                for actor in actors:
                    ray.kill(actor)


@dataclass(frozen=True)
class _Given:
    """Gives an embedder that was sent along."""

    embedder: AnyEmbedder

    def __call__(self) -> AnyEmbedder:
        return self.embedder


def _ray() -> Any:
    # Read by Ray when it is imported: nothing about a build leaves the cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UnavailableError(
            f"the engine ray needs the package ray, which is not installed: {INSTALL}; or build "
            "with the engine local"
        ) from None


@contextmanager
def _cluster(ray: Any, address: str | None, workers: int) -> Iterator[int]:
    """Join a cluster, or start one of this machine; one that this process joined before stays.

    Yields:
        How many processors a worker is given.
    """
    if ray.is_initialized():
        yield 1
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    share = 1
    options: dict[str, Any] = {"address": address}
    if not address:
        share = max(1, (os.cpu_count() or 1) // workers)
        options = {"address": "local", "num_cpus": share * workers, "include_dashboard": False}
    # Ray takes over the signal by which a job is stopped.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    logging.getLogger("ray").setLevel(logging.ERROR)  # what it says before it reads its options
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray cluster of this machine"
        raise UnavailableError(
            f"{where} cannot be used ({str(error).splitlines()[0]}); check the address "
            "(`ray status` there), or build with the engine local"
        ) from error
    try:
        processors = int(ray.cluster_resources().get("CPU", 0))
        if processors < workers:
            logger.warning(
                "the Ray cluster has %d processors now; of %d workers some will wait for more",
                processors,
                workers,
            )
        yield share
    finally:
        ray.shutdown()
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes for a host that does not answer.

    Raises:
        UnavailableError: nothing listens at the address, a host with a port; others are left to
            Ray ("auto").
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UnavailableError(
            f"nothing answers at {address}, where a Ray cluster should be ({error}); check the "
            "address (`ray status` there), or build with the engine local"
        ) from error


class _Names(Vocabulary):
    """A vocabulary that remembers which names it gave a value to, and which they preferred."""

    def __init__(self, known: Mapping[str, int]) -> None:
        super().__init__()
        self.restore(known)
        self.added: list[tuple[str, int]] = []

    def value(self, name: str, preferred: int) -> int:
        if name not in self._values:
            self.added.append((name, preferred))
        return super().value(name, preferred)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Chunk:
    """Cases to embed: their indices, and the mask values known so far."""

    numbers: Sequence[int]
    cases: Sequence[Case]
    names: Mapping[str, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Result:
    """What came of a chunk.

    Attributes:
        done: finished cases, with the worker's own mask values.
        bad: index of a case -> why it cannot be used.
        names: mask value -> name, of the worker.
        added: names that were new to it with the value they preferred, in their order.
        embedded: number of slices (or volumes).
    """

    done: Sequence[DoneCase]
    bad: Mapping[int, str]
    names: Mapping[int, str]
    added: Sequence[tuple[str, int]]
    embedded: int


class _Worker:
    """Embeds chunks in a process of its own."""

    def __init__(self, load: Callable[[], AnyEmbedder], space: str, policy: SlicePolicy) -> None:
        self._load = load
        self._space = space
        self._policy = policy
        self._embedder: AnyEmbedder | None = None

    def embed(self, chunk: _Chunk) -> _Result:
        if self._embedder is None:
            # Not on construction: what goes wrong here is then raised where the build can say it.
            self._embedder = self._load()
            if self._embedder.identity.space != self._space:
                raise UnavailableError(
                    f"a worker loaded another embedder ({self._embedder.identity}) than the "
                    "build; give all machines of the cluster the same weights"
                )
        names = _Names(chunk.names)
        done: list[DoneCase] = []
        counts = [0]
        bad = embed_cases(
            Job(
                cases=chunk.cases,
                wanted=range(len(chunk.cases)),
                embedder=self._embedder,
                policy=self._policy,
                vocabulary=names,
                save=lambda cases, _: done.extend(cases),
                report=lambda _, embedded: counts.append(embedded),
            )
        )
        return _Result(
            done=done,
            bad={chunk.numbers[place]: reason for place, reason in bad.items()},
            names=names.names(),
            added=names.added,
            embedded=counts[-1],
        )


@dataclass(eq=False)
class _Sent:
    chunk: _Chunk
    worker: int
    reference: Any
    ready: bool = False


@dataclass(eq=False)
class _Driver:
    """Sends chunks, takes results in the order of the cases, and saves them."""

    ray: Any
    job: Job
    actors: Sequence[Any]
    _sent: deque[_Sent] = field(default_factory=deque, init=False)
    _next: int = field(default=0, init=False)  # place in job.wanted
    _finished: int = field(default=0, init=False)
    _embedded: int = field(default=0, init=False)
    _saved: int = field(default=0, init=False)  # cases
    _rows: int = field(default=0, init=False)  # of them
    _bad: dict[int, str] = field(default_factory=dict, init=False)

    def run(self) -> dict[int, str]:
        self.job.report(0, 0)
        while True:
            self._send()
            if not self._sent:
                return self._bad
            running = [sent.reference for sent in self._sent if not sent.ready]
            ready, _ = self.ray.wait(running, num_returns=1)
            for sent in self._sent:
                sent.ready = sent.ready or sent.reference in ready
            # A slow chunk keeps later results waiting, but not the workers.
            while self._sent and self._sent[0].ready:
                self._take(self._sent.popleft())

    def _send(self) -> None:
        """Give work to every worker that has room for it."""
        load = [0] * len(self.actors)
        for sent in self._sent:
            load[sent.worker] += not sent.ready
        while self._next < len(self.job.wanted) and len(self._sent) < _AHEAD * len(self.actors):
            worker = min(range(len(load)), key=load.__getitem__)
            if load[worker] >= _QUEUED:
                return
            numbers = list(self.job.wanted[self._next : self._next + self._size()])
            self._next += len(numbers)
            chunk = _Chunk(
                numbers=numbers,
                cases=[self.job.cases[number] for number in numbers],
                names={name: value for value, name in self.job.vocabulary.names().items()},
            )
            reference = self.actors[worker].embed.remote(chunk)
            self._sent.append(_Sent(chunk, worker, reference))
            load[worker] += 1

    def _size(self) -> int:
        """How many cases make a chunk of a few batches, judged by those that are done."""
        if not self._saved:
            return 1
        cases = _BATCHES * batch_size(self.job.embedder) * self._saved // max(1, self._rows)
        left = len(self.job.wanted) - self._next
        return max(1, min(cases, _MOST_CASES, -(-left // len(self.actors))))

    def _take(self, sent: _Sent) -> None:
        try:
            result: _Result = self.ray.get(sent.reference)
        except self.ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except self.ray.exceptions.RayError as error:
            them = ", ".join(case.volume_id for case in sent.chunk.cases[:5])
            raise MedRetrievalError(
                f"a worker died {_RETRIES + 1} times at the same cases ({them}): "
                f"{str(error).splitlines()[0]}. Perhaps its memory is too small: try fewer "
                "--workers, or leave these cases out. What is done is kept"
            ) from error
        # In the order in which a build without workers would have met them.
        for name, preferred in result.added:
            self.job.vocabulary.value(name, preferred)
        names = self.job.vocabulary.names()
        translate = Translation.into(self.job.vocabulary, result.names)
        done = [_translated(case, translate) for case in result.done] if translate else result.done
        if done:
            self.job.save(done, names)
        for number, reason in result.bad.items():
            logger.warning("case %s cannot be used: %s", self.job.cases[number].volume_id, reason)
        self._bad.update(result.bad)
        self._saved += len(done)
        self._rows += sum(len(case.slices) for case in done)
        self._finished += len(sent.chunk.numbers)
        self._embedded += result.embedded
        self.job.report(self._finished, self._embedded)


def _translated(case: DoneCase, translate: Translation) -> DoneCase:
    """The case with the mask values of the build instead of its worker's."""
    slices = []
    for piece in case.slices:
        mask = piece.mask
        if mask is not None:
            stored = decode_png(mask, f"mask of slice {piece.slice_index}", max_side=1 << 20)
            mask = encode_png(translate(stored))
        values = tuple(sorted(translate.values[value] for value in piece.values))
        slices.append(replace(piece, mask=mask, values=values))
    return replace(case, slices=slices)
