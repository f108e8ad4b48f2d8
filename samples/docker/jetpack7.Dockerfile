# Jetson Orin or Thor with JetPack 7.2: Python 3.12, CUDA 13.2, TensorRT 10.16 (11.4.1 from 7.2.2).
# Not run here (no Jetson, no registry of images): neither built nor started. No base is assumed:
# name an arm64 image that has this JetPack's TensorRT, with its Python bindings, and Python 3.12.
#
#   docker build --build-arg BASE=IMAGE -f samples/docker/jetpack7.Dockerfile -t tokprune:jetpack7 .
#   docker run --rm -it --runtime nvidia -v /path/to/bundles:/bundles tokprune:jetpack7 \
#       build /bundles/qwen2_vl --engine tensorrt
ARG BASE
FROM ${BASE}

RUN apt-get update && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv --system-site-packages /opt/tokprune
ENV PATH=/opt/tokprune/bin:$PATH TOKPRUNE_STATE=/bundles/.state

COPY . /src
RUN pip install --no-cache-dir --upgrade pip \
    && pip install --no-cache-dir --constraint /src/constraints.txt '/src[camera]' cuda-bindings \
    && rm -rf /src
# Whether TensorRT can be imported is not tried here: its libraries may be mounted from the board,
# which docker build does without. docker run --runtime nvidia ... doctor says it.

ENTRYPOINT ["tokprune"]
CMD ["--help"]
