"""KVCache: what is kept, what moves, what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.logitspec import InputError, KVCache
from model.logitspec.kv_cache import SlotWindow

CPU = torch.device("cpu")


def filled(layers: int, capacity: int, committed: int, nodes: int) -> KVCache:
    """A cache whose keys hold their slot's number plus 100 per layer, and values the negative."""
    cache = KVCache([CPU] * layers, 2, 4, capacity, torch.float32)
    for start, count in ((0, committed), (committed, nodes)):
        for layer in range(layers):
            slots = torch.arange(start, start + count, dtype=torch.float32) + 100 * layer
            keys = slots[None, :, None].expand(2, count, 4)
            cache.window(count).write(layer, torch.stack((keys, -keys)))
        if start == 0 and committed:
            cache.keep(range(committed))
    return cache


def contents(cache: KVCache, layer: int) -> list[float]:
    keys, values = cache.window(0).write(layer, torch.empty(2, 2, 0, 4))
    assert torch.equal(keys, -values)
    return (keys[0, :, 0] - 100 * layer).tolist()


@given(st.integers(0, 5), st.integers(1, 9), st.data())
def test_keep_leaves_committed_positions_and_the_path(
    committed: int, nodes: int, data: st.DataObject
) -> None:
    path = sorted(data.draw(st.sets(st.integers(0, nodes - 1))))
    cache = filled(3, committed + nodes, committed, nodes)
    cache.keep(path)
    expected = [*range(committed), *(committed + node for node in path)]
    assert cache.length == len(expected)
    for layer in range(3):
        assert contents(cache, layer) == expected


def test_write_gives_everything_so_far_without_committing() -> None:
    cache = filled(1, 8, 2, 1)
    keys, values = cache.window(3).write(0, torch.full((2, 2, 3, 4), 7.0))
    assert keys.shape == values.shape == (2, 5, 4)
    assert keys[0, :, 0].tolist() == [0, 1, 7, 7, 7]
    assert cache.length == 2


def test_each_layer_lies_on_its_own_device() -> None:
    meta = torch.device("meta")
    cache = KVCache([CPU, meta, CPU], 2, 4, 8, torch.float32)
    for layer, device in enumerate(cache.devices):
        new = torch.full((2, 2, 3, 4), float(layer), device=device)
        assert cache.window(3).write(layer, new)[0].device == device
    cache.keep([0, 2])
    assert cache.length == 2
    for layer in (0, 2):
        assert torch.all(cache.window(0).write(layer, torch.empty(2, 2, 0, 4))[0] == layer)


def test_reset_empties_and_keeps_the_memory() -> None:
    cache = filled(1, 4, 3, 1)
    before = cache.window(0).seen[0].data_ptr()
    cache.reset()
    assert cache.length == 0
    assert cache.window(1).seen[0].data_ptr() == before


def test_bounds_are_checked_before_a_forward() -> None:
    cache = filled(1, 4, 3, 1)
    cache.require(1)
    with pytest.raises(InputError, match="2 more tokens after 3 do not fit the 4 slots"):
        cache.window(2)


def test_slots_named_by_a_tensor_are_the_same_slots() -> None:
    cache, other = filled(2, 8, 2, 1), filled(2, 8, 2, 1)
    new = torch.randn(2, 2, 3, 4)
    expected = cache.window(3).write(1, new)
    window = SlotWindow(other, 6)
    window.slots = torch.arange(2, 5)
    for whole, part in zip(window.write(1, new), expected, strict=True):
        assert whole.shape == (2, 6, 4)
        assert torch.equal(whole[:, :5], part)
        assert torch.isfinite(whole).all()  # never written: read by attention, and weighed with 0
