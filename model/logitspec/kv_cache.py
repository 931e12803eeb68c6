"""The preallocated KV caches of one model: written by its forward, committed by decoding.py."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .devices import sent
from .errors import InputError


class Window(Protocol):
    """What one forward over n tokens touches of a cache."""

    @property
    def devices(self) -> Sequence[torch.device]:
        """Of each layer."""

    def write(self, layer: int, kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, [2, heads, n, head_dim], behind the committed ones.

        Returns:
            Views on the keys and values that attention reads, each [heads, seen, head_dim].
        """


@dataclass(frozen=True)
class SliceWindow:
    """The next n slots, and everything up to them."""

    devices: Sequence[torch.device]
    new: list[torch.Tensor]  # per layer [2, heads, n, head_dim]
    seen: list[torch.Tensor]  # per layer [2, heads, length + n, head_dim]

    def write(self, layer: int, kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.new[layer].copy_(kv)
        keys, values = self.seen[layer].unbind()
        return keys, values


class SlotWindow:
    """Slots named by a tensor on the device, and the first `seen` ones: the same for every length.

    Set `slots`, [n], before each forward. The cache is all on one device.
    """

    slots: torch.Tensor

    def __init__(self, cache: KVCache, seen: int) -> None:
        self.devices = cache.devices
        self._layers = cache.store.unbind()
        self._seen = seen

    def write(self, layer: int, kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        store = self._layers[layer]
        store.index_copy_(2, self.slots, kv)
        keys, values = store[:, :, : self._seen].unbind()
        return keys, values


class KVCache:
    """Keys and values of all layers for one sequence, allocated once and reused by every call.

    Slots [0, length) hold committed positions. A forward over n tokens writes slots
    [length, length + n); they count only once `keep` has said which of them stay.

    Attributes:
        ids: token ids that slots [0, len(ids)) hold, of the last generation that ended here.
        best: the best token ids after each of the first of these, as far as they were asked for.

    Args:
        devices: the device of each layer; layers on one device share one tensor there.
        heads: key/value heads per layer.
        head_dim: size of one head.
        capacity: slots per layer.
        dtype: of the keys and values.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
    ) -> None:
        self.devices = list(devices)
        self.capacity = capacity
        self.length = 0
        self.ids: list[int] = []
        self.best: list[list[int]] = []
        self.graphs: dict[Any, Any] = {}  # what cuda_graphs.py captured over this memory
        self.workspace = torch.empty(0, dtype=torch.uint8)  # of the native layers, as they need it
        with torch.inference_mode(False):  # writable inside and outside of inference mode
            self._store: dict[torch.device, torch.Tensor] = {
                # zeros: attention at fixed shapes reads, and weighs with 0, what was never written
                device: torch.zeros(
                    layers, 2, heads, capacity, head_dim, dtype=dtype, device=device
                )
                for device, layers in Counter(devices).items()
            }

    @property
    def store(self) -> torch.Tensor:
        """[layers, 2, heads, capacity, head_dim], where all layers are on one device."""
        (store,) = self._store.values()
        return store

    @property
    def nbytes(self) -> int:
        """Memory of the slots, used or not."""
        return sum(store.nbytes for store in self._store.values())

    def reset(self, length: int = 0) -> None:
        """Go on behind the first `length` slots that are known to hold something."""
        self.length = length
        del self.ids[length:]
        del self.best[length:]

    def shared(self, prompt_ids: Sequence[int], best: int = 0) -> int:
        """How many tokens of a prompt, but for its last, the first slots hold.

        Args:
            prompt_ids: of the prompt.
            best: that many best tokens after each are to be known, too.
        """
        known = len(self.best) if best and self.best and len(self.best[0]) == best else 0
        most = min(len(self.ids), len(prompt_ids) - 1, *([known] if best else []))
        pairs = zip(self.ids[: max(most, 0)], prompt_ids, strict=False)
        return next((at for at, (own, other) in enumerate(pairs) if own != other), max(most, 0))

    def copy_from(self, other: KVCache) -> None:
        """Take over what a smaller cache of the same model has committed."""
        self.length = other.length
        self.ids, self.best = [*other.ids], [*other.best]
        for device, store in self._store.items():
            store[..., : self.length, :] = other._store[device][..., : self.length, :]

    def require(self, tokens: int) -> None:
        """Raise InputError unless a forward over `tokens` more tokens fits."""
        if self.length + tokens > self.capacity:
            raise InputError(
                f"{tokens} more tokens after {self.length} do not fit the {self.capacity} slots "
                "of the KV cache; "
                "allocate it for prompt + max_new_tokens + node_bucket(draft tree capacity)"
            )

    def window(self, tokens: int) -> SliceWindow:
        """Where a forward over `tokens` more tokens writes, and what it sees.

        Raises:
            InputError: they do not fit.
        """
        self.require(tokens)
        end = self.length + tokens
        layers = {device: iter(store.unbind()) for device, store in self._store.items()}
        stores = [next(layers[device]) for device in self.devices]
        return SliceWindow(
            self.devices,
            [store[..., self.length : end, :] for store in stores],
            [store[..., :end, :] for store in stores],
        )

    def keep(self, path: Sequence[int]) -> None:
        """Commit the nodes of `path` (ascending, counted from the last forward's first token).

        Only nodes that are out of place move: those before the first gap stay where they are.
        """
        start = next((i for i, node in enumerate(path) if node != i), len(path))
        if start < len(path):
            first = self.length + start
            last = self.length + len(path)
            nodes = [node + self.length for node in path[start:]]
            for device, store in self._store.items():
                source = sent(nodes, device)
                store[..., first:last, :] = store.index_select(-2, source)
        self.length += len(path)


CACHE_STEP = 256  # slots that a cache is allocated by
MOST_IDLE = 2  # caches that a pool keeps


class CachePool:
    """The caches of one model: each generation in flight has one of its own.

    One that is given back is kept for the next generation, with its memory and CUDA graphs; of
    those that nobody uses at most MOST_IDLE, the larger ones, and of equal ones the last used.
    """

    def __init__(self) -> None:
        self._idle: list[KVCache] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:  # a copy of a model begins without caches
        return CachePool, ()

    @property
    def nbytes(self) -> int:
        """Memory of the caches that nobody uses."""
        return sum(cache.nbytes for cache in self._idle)

    @contextmanager
    def lend(
        self,
        capacity: int,
        most: int,
        allocate: Callable[[int], KVCache],
        prompt_ids: Sequence[int] = (),
        best: int = 0,
    ) -> Iterator[KVCache]:
        """A cache of at least `capacity` slots, to the end of the block.

        It is empty, unless an idle one begins with tokens of the prompt: then these are committed.
        Where none is large enough that one or the largest idle one goes, and the new one is at
        least twice its size, up to `most` slots.

        Args:
            capacity: slots that are needed.
            most: slots beyond which none grows by itself.
            allocate: makes a cache of so many slots.
            prompt_ids: tokens that are to be read; none: nothing that a cache holds is used again.
            best: how many best tokens after each of these have to be known.
        """
        cache = self._take(capacity, prompt_ids, best)
        smaller = None
        if cache is not None and cache.capacity < capacity:
            cache.graphs.clear()  # they refer to it
            capacity = max(capacity, min(2 * cache.capacity, most))
            smaller, cache = cache if cache.length else None, None
        if cache is None:
            cache = allocate(-(-capacity // CACHE_STEP) * CACHE_STEP)
            if smaller is not None:
                cache.copy_from(smaller)
                smaller = None
        try:
            yield cache
        finally:
            with self._lock:
                # By size; of equal ones the last used first, whose graphs are captured.
                self._idle = sorted([cache, *self._idle], key=lambda c: c.capacity)
                while len(self._idle) > MOST_IDLE:
                    least = [c for c in self._idle if c.capacity == self._idle[0].capacity][-1]
                    self._idle.remove(least)
                    least.graphs.clear()  # they refer to it

    def _take(self, capacity: int, prompt_ids: Sequence[int], best: int) -> KVCache | None:
        """The idle cache that holds most of a prompt, reset to that.

        One that is too small is replaced only for the sake of half of the prompt. Of equal ones the
        smallest that is large enough, or the largest; of these the last used.
        """

        def order(at: int) -> tuple[int, bool, int, int]:
            size = self._idle[at].capacity
            fits = size >= capacity
            worth = shared[at] if fits or 2 * shared[at] >= len(prompt_ids) else 0
            return -worth, not fits, size if fits else -size, at

        with self._lock:
            if not self._idle:
                return None
            shared = [cache.shared(prompt_ids, best) for cache in self._idle]
            first = min(range(len(shared)), key=order)
            cache = self._idle.pop(first)
        cache.reset(shared[first])
        return cache
