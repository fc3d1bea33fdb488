# tritonlive on a GPU machine. NEVER BUILT: no registry and no GPU were available. It is only linted (make lint).
#
#   docker build -t tritonlive .
#   docker run --init --gpus all --shm-size 2g -p 9000:9000 -v tritonlive-cache:/cache \
#     -e TRITONLIVE_API_KEY -e TRITONLIVE_CONTROL_KEY -e HF_TOKEN tritonlive --model Qwen/Qwen3-0.6B
#
# --init reaps processes that the engine leaves behind; --shm-size is for Triton's Python backend.

# 26.11 is Triton 2.75.0; the -py3 image carries the Python backend (Python 3.12).
FROM nvcr.io/nvidia/tritonserver:26.11-py3

# A virtual environment, which replaces nothing in the image. Triton's Python backend finds it through PATH.
ENV VIRTUAL_ENV=/opt/tritonlive \
    PATH=/opt/tritonlive/bin:/opt/tritonserver/bin:$PATH \
    HF_HOME=/cache/huggingface \
    TRITONLIVE_CACHE_DIR=/cache/tritonlive \
    VLLM_CACHE_ROOT=/cache/vllm
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
# The large dependencies first, because they change less often than the code. Versions are those of the CPU's lock.
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir vllm==0.32.0 "tritonclient[grpc]==2.73.0" openai==3.54.0 transformers==5.19.0
WORKDIR /src
COPY . .
# The image keeps the installed package and its model repository, not the sources.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[server]" \
    && rm -rf /src/* \
    && useradd --create-home --uid 10001 tritonlive \
    && install -d -o tritonlive /cache

USER 10001
WORKDIR /home/tritonlive
VOLUME /cache
# The start is refused without TRITONLIVE_API_KEY: the front end listens on every address of the container. Triton's ports
# stay internal; -p 8001:8001 and --triton-host 0.0.0.0 expose its gRPC, which asks for the same keys.
EXPOSE 9000
# /health is 200 only while an engine answers. A start downloads and compiles.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["curl", "--fail", "--silent", "--show-error", "http://127.0.0.1:9000/health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tritonlive", "serve", "--host", "0.0.0.0"]
