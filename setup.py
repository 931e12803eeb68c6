"""Installs model/logitspec as the package `logitspec`."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


setup(
    name="logitspec",
    version="0.1.0",
    description="Retrieval-based speculative decoding via next next token speculation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url="https://arxiv.org/abs/2507.01449",
    project_urls={"Paper": "https://arxiv.org/abs/2507.01449"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    package_dir={
        "logitspec": "model/logitspec",
        "logitspec.cpu": "model/logitspec/cpu",
        "logitspec.drafters": "model/logitspec/drafters",
        "logitspec.drafters.calibrated": "model/logitspec/drafters/calibrated",
        "logitspec.sizing": "model/logitspec/sizing",
        "logitspec.vllm": "model/logitspec/vllm",
    },
    packages=[
        "logitspec",
        "logitspec.cpu",
        "logitspec.drafters",
        "logitspec.drafters.calibrated",
        "logitspec.sizing",
        "logitspec.vllm",
    ],
    package_data={
        "logitspec": ["noise.h", "py.typed"],
        "logitspec.cpu": ["*.cpp", "*.h"],
        "logitspec.drafters.calibrated": ["drafting.cpp", "*.h", "*.json"],
    },
    install_requires=requirements(),
    extras_require={
        "dev": [
            "bitsandbytes>=0.46",
            "httpx>=0.27",
            "hypothesis>=6.100",
            "mypy>=1.13",
            "openai>=1.50",
            "peft>=0.15",
            "playwright>=1.45",
            "pytest>=8.2",
            "pytest-cov>=5",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "types-requests",
            "types-tqdm",
        ],
        "datastore": ["pydivsufsort>=0.0.18"],
        "llama": ["xllamacpp>=2026.10"],
        "ray": ["ray>=2.40"],
        "plots": ["matplotlib>=3.9"],
        "score": ["math-verify>=0.9"],
        "suffix": ["arctic-inference>=0.3"],
        "vllm": ["vllm==0.32.*"],
    },
)
