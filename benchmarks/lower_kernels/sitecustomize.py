"""Read by every Python of a vLLM server under LOGITSPEC_ISA (vllm_server.py).

vLLM chooses its kernels by what torch says that the CPU has, which torch's own variables for a
lower instruction set do not change.
"""

import os

import torch

ABOVE = {
    "avx2": ("avx512", "avx512_bf16", "amx_tile"),
    "avx512": ("avx512_bf16", "amx_tile"),
}

for name in ABOVE.get(os.environ.get("LOGITSPEC_ISA", ""), ()):
    setattr(torch.cpu, f"_is_{name}_supported", lambda: False)
