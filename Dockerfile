# Images with what training, evaluation and chat need. From the root of the repository:
#
#   docker build --target cpu --build-arg COMMIT="$(git rev-parse HEAD)" --tag quicksviewer:cpu .
#   docker build --target gpu --build-arg COMMIT="$(git rev-parse HEAD)" --tag quicksviewer:gpu .
#
# docs/export.md says which of the steps below have been run, and where. No stage needs a secret.

ARG CPU_IMAGE=python:3.11-slim-bookworm
ARG GPU_IMAGE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04
# Folder of the virtual environment and of the code.
ARG PREFIX=/opt
ARG TORCH_VERSION=2.13.0
# Of pyproject.toml, separated by commas.
ARG EXTRAS=quant,data,serve
ARG USER_ID=10001

# --- the system ---

FROM ${CPU_IMAGE} AS cpu-system

FROM ${GPU_IMAGE} AS gpu-system
# DeepSpeed and flash-attn compile with what is here.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ninja-build python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# --- dependencies: layers that a change of the code does not touch ---

FROM cpu-system AS cpu-dependencies
ARG PREFIX
ARG TORCH_VERSION
ARG EXTRAS
# PyTorch's own index of torch without CUDA, for torch alone; empty: where pip finds everything else.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV DS_BUILD_OPS=0
WORKDIR ${PREFIX}/build
COPY docker/dependencies.sh pyproject.toml constraints.txt ./
RUN bash dependencies.sh "${PREFIX}/venv" "${TORCH_VERSION}" "${EXTRAS}" "${TORCH_INDEX}" \
    && "${PREFIX}/venv/bin/python" -c "import torch; assert torch.version.cuda is None, torch.__version__"

FROM gpu-system AS gpu-dependencies
ARG PREFIX
ARG TORCH_VERSION
ARG EXTRAS
ENV DS_BUILD_OPS=0
WORKDIR ${PREFIX}/build
COPY docker/dependencies.sh pyproject.toml constraints.txt ./
RUN bash dependencies.sh "${PREFIX}/venv" "${TORCH_VERSION}" "${EXTRAS}"
# Empty: without flash-attn, which takes long to compile and is nowhere needed.
ARG FLASH_ATTN_VERSION=
RUN if [ -n "${FLASH_ATTN_VERSION}" ]; then \
      "${PREFIX}/venv/bin/python" -m pip install --no-cache-dir --no-build-isolation \
        "flash-attn==${FLASH_ATTN_VERSION}"; \
    fi

# --- the images ---

FROM cpu-system AS cpu
ARG PREFIX
ARG USER_ID
ENV PATH=${PREFIX}/venv/bin:${PATH} DS_BUILD_OPS=0 DS_ACCELERATOR=cpu PYTHONUNBUFFERED=1
RUN useradd --create-home --uid "${USER_ID}" quicksviewer
COPY --from=cpu-dependencies ${PREFIX}/venv ${PREFIX}/venv
WORKDIR ${PREFIX}/quicksviewer
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE zero2.json zero3.json ./
COPY compat compat
COPY configs configs
COPY scripts scripts
COPY quicksviewer quicksviewer
RUN python -m pip install --no-cache-dir --no-deps --editable . && python -m compileall -q quicksviewer
# Which commit the code is of: the checkout itself stays outside.
ARG COMMIT=
ENV QUICKSVIEWER_COMMIT=${COMMIT}
USER quicksviewer
WORKDIR /home/quicksviewer
ENTRYPOINT ["quicksviewer"]
CMD ["--help"]
RUN python -c "import quicksviewer; quicksviewer.load_pretrained_model" && quicksviewer doctor

FROM gpu-system AS gpu
ARG PREFIX
ARG USER_ID
ENV PATH=${PREFIX}/venv/bin:${PATH} PYTHONUNBUFFERED=1
RUN useradd --create-home --uid "${USER_ID}" quicksviewer
COPY --from=gpu-dependencies ${PREFIX}/venv ${PREFIX}/venv
WORKDIR ${PREFIX}/quicksviewer
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE zero2.json zero3.json ./
COPY compat compat
COPY configs configs
COPY scripts scripts
COPY quicksviewer quicksviewer
RUN python -m pip install --no-cache-dir --no-deps --editable . && python -m compileall -q quicksviewer
# Which commit the code is of: the checkout itself stays outside.
ARG COMMIT=
ENV QUICKSVIEWER_COMMIT=${COMMIT}
USER quicksviewer
WORKDIR /home/quicksviewer
ENTRYPOINT ["quicksviewer"]
CMD ["--help"]
RUN python -c "import quicksviewer; quicksviewer.load_pretrained_model" && quicksviewer doctor
