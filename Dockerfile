# The tested versions, by hash: `docker build -t qdora-fast .` for an NVIDIA GPU, `--target cpu` without one.
# Not built by the tests, which have no Docker: they compare its versions and steps with locks/ and the Makefile.
#
#   docker run --gpus all -v qdora-cache:/cache -v "$PWD/runs:/runs" -v "$PWD:/data:ro" qdora-fast \
#       train llama3.1-8b-24gb --set data.path=/data/my.jsonl
#
# Triton compiles kernels while a model trains, so a C compiler stays in the image. CUDA's libraries come with torch.

ARG CUDA=13.0.1

FROM ubuntu:24.04 AS tools
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
ENV DEBIAN_FRONTEND=noninteractive UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_NO_CACHE=1
RUN uv python install 3.11 && uv venv --python 3.11 /opt/build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY locks ./locks
COPY configs ./configs
COPY qdora_fast ./qdora_fast
RUN uv pip install --python /opt/build/bin/python --no-deps --require-hashes -r locks/build.txt \
    && /opt/build/bin/python -m hatchling build -t wheel -d /wheel

FROM tools AS cpu-packages
RUN uv venv --python 3.11 /opt/qdora
RUN uv pip install --python /opt/qdora/bin/python --no-deps --torch-backend cpu "torch==$(sed -n 's/^torch==//p' constraints.txt)" \
    && uv pip install --python /opt/qdora/bin/python --no-deps --require-hashes -r locks/base.txt \
    && uv pip install --python /opt/qdora/bin/python --no-deps /wheel/*.whl

FROM tools AS gpu-packages
RUN uv venv --python 3.11 /opt/qdora
RUN uv pip install --python /opt/qdora/bin/python --no-deps --require-hashes -r locks/base.txt -r locks/gpu.txt \
    && uv pip install --python /opt/qdora/bin/python --no-deps /wheel/*.whl

FROM ubuntu:24.04 AS cpu
COPY --from=cpu-packages /opt /opt
RUN mkdir -p /cache /runs && chown ubuntu /cache /runs
ENV PATH=/opt/qdora/bin:$PATH HF_HOME=/cache/huggingface QDORA_FAST_CACHE=/cache/qdora_fast
USER ubuntu
VOLUME ["/cache", "/runs"]
HEALTHCHECK --interval=24h --timeout=3m --start-period=5m --start-interval=15s CMD ["qdora-fast", "doctor", "--offline"]
ENTRYPOINT ["qdora-fast"]
CMD ["doctor"]

FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04 AS gpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-packages /opt /opt
RUN mkdir -p /cache /runs && chown ubuntu /cache /runs
ENV PATH=/opt/qdora/bin:$PATH HF_HOME=/cache/huggingface QDORA_FAST_CACHE=/cache/qdora_fast
USER ubuntu
VOLUME ["/cache", "/runs"]
HEALTHCHECK --interval=24h --timeout=3m --start-period=5m --start-interval=15s CMD ["qdora-fast", "doctor", "--offline"]
ENTRYPOINT ["qdora-fast"]
CMD ["doctor"]
