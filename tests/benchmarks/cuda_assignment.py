"""Run as a program: make a session of ONNX Runtime's CUDA engine, and print where nodes went.

    python cuda_assignment.py GRAPH.onnx

Needs onnxruntime-gpu and nothing else. One JSON object: versions, and one row a node.
"""

import json
import platform
import sys

import onnxruntime

NAMES = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}


def main() -> None:
    """Print the assignment."""
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        raise SystemExit(f"onnxruntime-gpu {onnxruntime.__version__} does not tell; 1.31.1 does")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    engines = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    given = [(engines[0], {"use_tf32": "0"}), engines[1]]  # as tokprune_runtimes.ort does
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=given)
    if session.get_providers() != engines:
        raise SystemExit(f"The CUDA engine was not loaded: {session.get_providers()}")
    nodes = [
        {
            "op": node.op_type,
            "domain": node.domain,
            "name": node.name,
            "engine": NAMES[part.ep_name],
        }
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    versions = {"onnxruntime-gpu": onnxruntime.__version__, "python": platform.python_version()}
    sys.stdout.write(json.dumps({"versions": versions, "nodes": nodes}) + "\n")


if __name__ == "__main__":
    main()
