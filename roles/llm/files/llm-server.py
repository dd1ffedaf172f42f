"""Serve one GGUF model with an OpenAI-compatible API (llama.cpp's own server, through xllamacpp).

The API key is read from a file, never from the command line or the environment, where other processes could see it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import xllamacpp


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--alias", required=True, help="name under which the API serves the model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="conversations answered at the same time")
    parser.add_argument("--context", type=int, required=True, help="tokens of prompt and answer, per slot")
    parser.add_argument("--max-answer", type=int, required=True, help="tokens, where the request names no limit")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--api-key-file", type=Path, required=True, help="file whose only line is the key to ask for")
    return parser.parse_args()


def parameters(options: argparse.Namespace, api_key: str) -> xllamacpp.CommonParams:
    """Return llama.cpp's settings; what is not set here keeps its default."""
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.api_keys = [api_key]
    params.n_parallel = options.slots
    params.n_ctx = options.slots * options.context  # llama.cpp divides the whole context among the slots
    params.n_predict = options.max_answer
    params.cpuparams.n_threads = options.threads
    params.cache_ram_mib = 0  # the default keeps up to 8 GiB of old prompts in memory
    params.ui = False  # an API only: no web page, no slot inspection (it shows what others type)
    params.endpoint_slots = False
    return params


def main() -> None:
    options = arguments()
    if not options.model.is_file():
        sys.exit(f"There is no model file {options.model}.")
    api_key = options.api_key_file.read_text(encoding="utf-8").strip()
    if not api_key:
        sys.exit("The API key is empty: the model would answer everybody.")
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the server starts its threads, so that the signal reaches sigwait below and no thread of llama.cpp.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    server = xllamacpp.Server(parameters(options, api_key))  # returns when the model is loaded, raises otherwise
    print(f"serving {options.alias} on {server.listening_address}", flush=True)
    signal.sigwait(stop_signals)
    # Ending with the interpreter's clean-up would wait for running answers; nothing needs to be saved.
    os._exit(0)


if __name__ == "__main__":
    main()
