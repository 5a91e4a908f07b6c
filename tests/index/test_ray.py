"""Building on a Ray cluster of two workers: as in one process, whoever is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import (
    DIM,
    POLICY,
    FakeEmbedder,
    FakeVolumeEmbedder,
    contents,
    kill_at,
    kill_once,
    killed_cases,
    make_case,
)

from medretrieval.errors import InputError, MedRetrievalError, UnavailableError, UsageError
from medretrieval.index import Case, RayEngine, build, open_store
from medretrieval.index import ray_engine as module

HERE = str(Path(__file__).parent)


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of this machine, whose workers find the fakes; yields its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([HERE, *filter(None, sys.path)]))
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 << 20,
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_equal_to_the_build_in_one_process(cluster: str, tmp_path: Path) -> None:
    # Some values have no name: whoever meets them first decides which value they get.
    cases = [
        *killed_cases(),
        *(make_case(n, names={}, values=(1, 70_000 + n % 3, 2 + n % 5)) for n in range(20, 40)),
    ]
    seen: list[tuple[int, int, str]] = []
    ours = run(cases, tmp_path / "ray", engine=RayEngine(), progress=lambda *a: seen.append(a))
    theirs = run(cases, tmp_path / "local")
    assert contents(ours) == contents(theirs)
    counts = [done for done, _, message in seen if "embedded" in message]
    assert counts[0] == 0
    assert counts[-1] == len(cases)
    assert counts == sorted(counts)
    with open_store(ours) as store:
        assert f"{len(store)} slices embedded" in [m for *_, m in seen if "embedded" in m][-1]


@pytest.mark.slow
def test_whole_volumes(cluster: str, tmp_path: Path) -> None:
    cases = [make_case(n, depth=2 + n % 3, values=(1, 5 + n)) for n in range(5)]
    load = FakeVolumeEmbedder
    ours = run(cases, tmp_path / "a", embedder=load(), engine=RayEngine(load=load))
    assert contents(ours) == contents(run(cases, tmp_path / "b", embedder=load()))


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_cases_done_again(cluster: str, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    embedder = FakeEmbedder(before=kill_once(2, marker))
    ours = run(killed_cases(), tmp_path / "ray", embedder=embedder, engine=RayEngine())
    assert marker.exists()
    assert contents(ours) == contents(run(killed_cases(), tmp_path / "local"))


@pytest.mark.slow
def test_cases_that_always_kill_their_worker_end_the_build(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRIES", 1)
    embedder = FakeEmbedder(before=kill_at(0))
    with pytest.raises(MedRetrievalError, match=r"died 2 times at the same cases \(volume-000\)"):
        run(killed_cases(), tmp_path / "i", embedder=embedder, engine=RayEngine(workers=1))
    assert not (tmp_path / "i").exists()


@pytest.mark.slow
def test_a_case_that_cannot_be_read(cluster: str, tmp_path: Path) -> None:
    bad = make_case(7, load_error=InputError("the file is cut off"))
    cases = [make_case(n, values=(1, 9 + n)) for n in range(5)]
    cases.insert(2, bad)
    out = tmp_path / "i"
    with pytest.raises(InputError, match=r"1 of 6 cases(.|\n)*volume-007: the file is cut off"):
        run(cases, out, engine=RayEngine())
    # What could be read is stored: only the bad one is tried again.
    embedder = FakeEmbedder()
    run(cases, out, embedder=embedder, skip_bad=True)
    assert embedder.batches == []
    assert contents(out) == contents(run(cases, tmp_path / "local", skip_bad=True))
    whole = run(cases, tmp_path / "ray", skip_bad=True, engine=RayEngine())
    assert contents(whole) == contents(out)


@pytest.mark.slow
def test_a_killed_driver_leaves_what_is_done(cluster: str, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from index_fakes import *\n"
        "from medretrieval.index import RayEngine, build\n"
        "def progress(done, total, message):\n"
        "    if done >= 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build(killed_cases(), sys.argv[2], slices=POLICY, name='test', embedder=FakeEmbedder(),"
        "      engine=RayEngine(address=sys.argv[3]), progress=progress)"
    )
    out = tmp_path / "i"
    killed = subprocess.run(
        [sys.executable, "-c", script, HERE, str(out), cluster],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    embedder = FakeEmbedder()
    run(killed_cases(), out, embedder=embedder)
    whole = run(killed_cases(), tmp_path / "local")
    assert contents(out) == contents(whole)
    with open_store(whole) as store:
        assert 0 < sum(embedder.batches) <= len(store) - 10  # the first four cases are done


@pytest.mark.slow
def test_errors_of_the_embedder_come_back_as_they_are(cluster: str, tmp_path: Path) -> None:
    def shorten(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return vectors[:, : DIM - 1]

    cases = [make_case(n) for n in range(3)]
    embedder = FakeEmbedder(change=shorten)
    with pytest.raises(MedRetrievalError, match="gave an array of shape"):
        run(cases, tmp_path / "a", embedder=embedder, engine=RayEngine())
    with pytest.raises(UnavailableError, match="loaded another embedder"):
        run(cases, tmp_path / "b", engine=RayEngine(load=FakeVolumeEmbedder))


@pytest.mark.slow
def test_a_cluster_of_its_own_is_stopped_after_the_build(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script = (
        "import signal, sys; sys.path.insert(0, sys.argv[1]); from index_fakes import *\n"
        "from medretrieval.index import RayEngine, build\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "build(killed_cases(), sys.argv[2], slices=POLICY, name='test', embedder=FakeEmbedder(),"
        "      engine=RayEngine(workers=2))\n"
        "import ray\n"
        "assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) is before\n"
    )
    path = os.pathsep.join([HERE, *filter(None, sys.path)])
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", script, HERE, str(tmp_path / "i")],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert contents(tmp_path / "i") == contents(run(killed_cases(), tmp_path / "local"))


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="workers is 0"):
        run([make_case(0)], tmp_path / "i", engine=RayEngine(workers=0))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnavailableError, match=r"pip install .*ray"):
        run([make_case(0)], tmp_path / "i", engine=RayEngine())
    assert list(tmp_path.iterdir()) == []


def test_an_address_where_nothing_listens_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnavailableError, match=f"nothing answers at {address}"):
        run([make_case(0)], tmp_path / "i", engine=RayEngine(address=address))
