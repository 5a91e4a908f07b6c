from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import torch

from medretrieval.segmentation.cache import Memory, MemoryCache


def memory(seed: int) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    return Memory(
        features=torch.randn((4, 2, 2), generator=generator),
        pointer=torch.randn((8,), generator=generator),
        foreground=torch.rand((2, 2), generator=generator) > 0.5,
    )


def key(number: int) -> str:
    return f"{number:064x}"


def same(a: Memory | None, b: Memory) -> bool:
    return a is not None and a.digest() == b.digest()


SIZE = memory(0).nbytes


def test_least_recently_used_goes_first() -> None:
    cache = MemoryCache(max_bytes=2 * SIZE)
    cache.put(key(1), memory(1))
    cache.put(key(2), memory(2))
    assert same(cache.get(key(1)), memory(1))
    cache.put(key(3), memory(3))
    assert cache.get(key(2)) is None
    assert same(cache.get(key(1)), memory(1))
    assert same(cache.get(key(3)), memory(3))
    assert cache.nbytes == 2 * SIZE


def test_replacing_does_not_count_twice() -> None:
    cache = MemoryCache(max_bytes=2 * SIZE)
    for seed in range(5):
        cache.put(key(1), memory(seed))
    assert (len(cache), cache.nbytes) == (1, SIZE)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_what_is_too_large_is_not_kept() -> None:
    cache = MemoryCache(max_bytes=SIZE - 1)
    cache.put(key(1), memory(1))
    assert cache.get(key(1)) is None


def test_disk_gives_the_same_bits_to_another_process(tmp_path: Path) -> None:
    MemoryCache(folder=tmp_path / "new").put(key(1), memory(1))
    found = MemoryCache(folder=tmp_path / "new").get(key(1))
    assert found is not None
    assert torch.equal(found.features, memory(1).features)
    assert torch.equal(found.pointer, memory(1).pointer)
    assert torch.equal(found.foreground, memory(1).foreground)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"{key(1)}.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "text"])
def test_a_damaged_file_is_logged_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    MemoryCache(folder=tmp_path).put(key(1), memory(1))
    path = tmp_path / f"{key(1)}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(
        {
            "truncated": path.read_bytes()[:-8],
            "flipped bit": bytes(data),
            "empty": b"",
            "text": b"not a safetensors file at all",
        }[damage]
    )
    cache = MemoryCache(folder=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert cache.get(key(1)) is None
    assert "damaged" in caplog.text
    cache.put(key(1), memory(1))
    assert same(MemoryCache(folder=tmp_path).get(key(1)), memory(1))


def test_a_folder_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = MemoryCache(folder=tmp_path / "file" / "folder")
    with caplog.at_level(logging.WARNING):
        cache.put(key(1), memory(1))
    assert "cannot be stored" in caplog.text
    assert same(cache.get(key(1)), memory(1))


def test_half_keeps_twice_as_many_and_gives_the_same_before_and_after(tmp_path: Path) -> None:
    cache = MemoryCache(folder=tmp_path, half=True)
    rounded = memory(1).half()
    assert rounded.nbytes - 4 == (memory(1).nbytes - 4) / 2  # 4 bytes say where the label is
    assert same(cache.put(key(1), memory(1)), rounded)
    assert same(cache.get(key(1)), rounded)
    assert same(MemoryCache(folder=tmp_path, half=True).get(key(1)), rounded)
    assert same(MemoryCache(folder=tmp_path).get(key(1)), rounded)
    assert same(rounded.half(), rounded)


def test_a_file_in_float32_is_rounded_by_a_cache_of_halves(tmp_path: Path) -> None:
    MemoryCache(folder=tmp_path).put(key(1), memory(1))
    assert same(MemoryCache(folder=tmp_path, half=True).get(key(1)), memory(1).half())


def test_tensors_that_are_no_memory_are_refused() -> None:
    tensors = memory(1).tensors()
    assert same(Memory.from_tensors(tensors), memory(1))
    for wrong in (
        {"features": tensors["features"][0]},
        {"features": tensors["features"].half()},
        {"pointer": tensors["pointer"].double(), "features": tensors["features"].double()},
        {"foreground": tensors["foreground"][:1]},
        {"foreground": tensors["foreground"].int()},
        {"more": tensors["pointer"]},
    ):
        with pytest.raises(ValueError, match=r"memory|instead of"):
            Memory.from_tensors({**tensors, **wrong})


def test_many_threads(tmp_path: Path) -> None:
    cache = MemoryCache(max_bytes=3 * SIZE, folder=tmp_path)
    wrong: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + 20):
            cache.put(key(number % 8), memory(number % 8))
            if not same(cache.get(key(number % 8)), memory(number % 8)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.nbytes == len(cache) * SIZE <= 3 * SIZE


def test_the_oldest_files_go_when_a_folder_is_too_large(tmp_path: Path) -> None:
    cache = MemoryCache(folder=tmp_path)
    for seed in range(4):
        cache.put(key(seed), memory(seed))
        os.utime(tmp_path / f"{key(seed)}.safetensors", ns=(seed, seed))
    size = (tmp_path / f"{key(0)}.safetensors").stat().st_size
    MemoryCache(folder=tmp_path, max_folder_bytes=2 * size)
    assert {p.stem for p in tmp_path.iterdir()} == {key(2), key(3)}
