"""What transformers' generate() runs for custom_generate="org/logitspec": the installed package."""

from typing import Any

import logitspec


def generate(model: Any, **arguments: Any) -> Any:
    """transformers' generate() with drafts; the tokens are the model's own.

    Args:
        model: a causal language model of the Llama family.
        arguments: of generate(), and `method`, a name like "calibrated@auto" or a drafter of the
            package, which keeps from call to call what its method learns.
    """
    return model.generate(custom_generate=logitspec.custom_generate, **arguments)
