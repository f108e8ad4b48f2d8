# Jetson Orin with JetPack 6.x: Python 3.10, TensorRT 10.3 of the system, onnxruntime 1.23.2.
# Not run here (no Jetson, no registry of images): neither built nor started.
#
#   docker build -f samples/docker/jetpack6.Dockerfile -t tokprune:jetpack6 .
#   docker run --rm -it --runtime nvidia -v /path/to/bundles:/bundles tokprune:jetpack6 \
#       build /bundles/qwen2_vl --engine tensorrt
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

RUN apt-get update && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The system's packages hold `import tensorrt`; no wheel of it exists for this JetPack.
RUN python3 -m venv --system-site-packages /opt/tokprune
ENV PATH=/opt/tokprune/bin:$PATH TOKPRUNE_STATE=/bundles/.state

COPY . /src
RUN pip install --no-cache-dir --upgrade pip \
    && pip install --no-cache-dir --constraint /src/constraints.txt '/src[camera]' \
    && pip install --no-cache-dir 'cuda-bindings==12.9.10' \
    && rm -rf /src
# Whether TensorRT can be imported is not tried here: its libraries may be mounted from the board,
# which docker build does without. docker run --runtime nvidia ... doctor says it.

ENTRYPOINT ["tokprune"]
CMD ["--help"]
