"""Serves a model with ray.serve.llm on a Ray of its own: the peer's row of the gateway benchmark.

    python benchmarks/ray_serve_llm.py --model-path FOLDER --port 8000

Its modes (defaults; HAProxy with direct streaming) are environment variables that Ray reads when it
starts, so whoever starts this script sets them: see `benchmarks/engine_rows.py`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def llm_config(name: str, path: str) -> Any:
    """Return one replica of the model on a CPU, with the engine arguments of every other row."""
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": path},
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        engine_kwargs={
            "dtype": "float32",
            "block_size": 32,
            "enforce_eager": True,
            "max_model_len": 2048,
            "max_num_seqs": 16,
        },
        deployment_config={"num_replicas": 1, "ray_actor_options": {"num_cpus": 1}},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="ray.serve.llm, one model, one replica.")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-name", default="tiny")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    # Four CPUs by name on whatever machine: the default ingress wants more than two.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=True)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": args.port})
        serve.run(build_openai_app({"llm_configs": [llm_config(args.model_name, args.model_path)]}))
        signal.pause()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
