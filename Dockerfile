# docker build -t avssl .
# docker build -t avssl --build-arg BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04 .
# docker run --rm -it --shm-size 8g -v "$PWD:/work" avssl train toy/avid ...     (with a GPU: --gpus all)
# --shm-size: decoding workers hand batches over in shared memory, of which a container has 64 MB by default.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN command -v python3 >/dev/null || (apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*)
WORKDIR /opt/avssl
COPY . .
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir . -c constraints.txt
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["avssl"]
