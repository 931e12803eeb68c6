"""What drafters may ask of a loaded model: the cost of its steps, the successors of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from .modeling_llama_kv import LlamaKVForCausalLM
from .sizing import measuring
from .sizing.step_cost import StepCost
from .successors import successors


@dataclass(frozen=True)
class MeasuredModel:
    """A model as drafters see it (sizing.step_cost.Measurable); equal for one model.

    Args:
        model: the target, loaded.
    """

    model: LlamaKVForCausalLM

    def step_cost(self, top_k: int, node_top_k: int = 0) -> StepCost:
        """What a step costs by its nodes, measured in a few seconds or remembered."""
        return measuring.step_cost(self.model, top_k, node_top_k)

    def successors(self, count: int, width: int) -> list[list[int]]:
        """The best tokens after each of the first token ids alone, found or remembered."""
        return successors(self.model, count, width)
