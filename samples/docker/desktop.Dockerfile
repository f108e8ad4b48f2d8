# A PC with an NVIDIA GPU: TensorRT-RTX (default) or ONNX Runtime on CUDA 13, from PyPI alone.
# Not run here (no GPU, no registry of images): neither built nor started. Its pip lines were resolved.
#
#   docker build -f samples/docker/desktop.Dockerfile -t tokprune:desktop .
#   docker build --build-arg ENGINE=cuda -f samples/docker/desktop.Dockerfile -t tokprune:cuda .
#   docker run --rm -it --gpus all -v /path/to/bundles:/bundles tokprune:desktop \
#       build /bundles/qwen2_vl --engine tensorrt-rtx
FROM python:3.12-slim

ARG ENGINE=tensorrt-rtx
ENV TOKPRUNE_STATE=/bundles/.state

COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[camera,${ENGINE}]"
# Both ONNX Runtimes have the same files, so one has to go before the other comes.
RUN if [ "${ENGINE}" = cuda ]; then pip uninstall -y onnxruntime \
    && pip install --no-cache-dir --no-deps --constraint /src/constraints.txt onnxruntime-gpu; fi \
    && rm -rf /src

ENTRYPOINT ["tokprune"]
CMD ["--help"]
