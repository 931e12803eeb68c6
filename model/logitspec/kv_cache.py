"""The preallocated KV cache of one model: written by its forward, committed by decoding.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from .errors import InputError


class KVCache:
    """Keys and values of all layers for one sequence, allocated once and reused by every call.

    Slots [0, length) hold committed positions. A forward over n tokens writes slots
    [length, length + n); they count only once `keep` has said which of them stay.

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
        with torch.inference_mode(False):  # writable inside and outside of inference mode
            self._store: dict[torch.device, torch.Tensor] = {
                device: torch.empty(
                    layers, 2, heads, capacity, head_dim, dtype=dtype, device=device
                )
                for device, layers in Counter(devices).items()
            }
        rows = {device: iter(store) for device, store in self._store.items()}
        self._layers = [
            next(rows[device]) for device in devices
        ]  # each [2, heads, capacity, head_dim]

    def reset(self) -> None:
        """Forget every position; the memory stays."""
        self.length = 0

    def require(self, tokens: int) -> None:
        """Raise InputError unless a forward over `tokens` more tokens fits."""
        if self.length + tokens > self.capacity:
            raise InputError(
                f"{tokens} more tokens after {self.length} do not fit the {self.capacity} slots "
                "of the KV cache; "
                "allocate it for prompt + max_new_tokens + draft tree capacity"
            )

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, each [heads, n, head_dim], behind the committed ones.

        Returns:
            Views on all keys and values of the layer so far, each [heads, length + n, head_dim].
        """
        end = self.length + keys.shape[1]
        store = self._layers[layer]
        store[0, :, self.length : end] = keys
        store[1, :, self.length : end] = values
        return store[0, :, :end], store[1, :, :end]

    def keep(self, path: Sequence[int]) -> None:
        """Commit the nodes of `path` (ascending, counted from the last forward's first token).

        Only nodes that are out of place move: those before the first gap stay where they are.
        """
        start = next((i for i, node in enumerate(path) if node != i), len(path))
        if start < len(path):
            first = self.length + start
            last = self.length + len(path)
            nodes = torch.tensor(path[start:]) + self.length
            for device, store in self._store.items():
                source = nodes.to(device, non_blocking=True)
                store[..., first:last, :] = store.index_select(-2, source)
        self.length += len(path)
