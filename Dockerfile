# torch's wheels bring their own CUDA libraries (cudart, cuBLAS, cuDNN, NCCL). What a container needs
# beside them is the driver, which the NVIDIA container runtime mounts from the host; of the CUDA
# images "base" tells it to do so, and asks for a driver that knows CUDA 13.0. "runtime" would only
# add the same libraries a second time. Without a GPU the image runs on the CPU.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${CUDA_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
COPY requirements.lock /tmp/requirements.lock
# Each file must have the hash that the lock says. Four packages come as sources alone: they are built
# by the lock's setuptools, and not by whichever is the newest.
ARG PIP_INSTALL="/opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --use-pep517 --no-build-isolation"
RUN sed -n '/^setuptools==/,/# via/p' /tmp/requirements.lock > /tmp/setuptools.lock \
    && ${PIP_INSTALL} -r /tmp/setuptools.lock \
    && ${PIP_INSTALL} -r /tmp/requirements.lock
# The image has no compiler: what is compiled at a first start elsewhere is compiled here.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY sensevoice_service /app/sensevoice_service
RUN cd /app && python3 -m sensevoice_service.native_library

FROM ${CUDA_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin sensevoice \
    && install -d -o sensevoice -g sensevoice /models
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY config.py api.py ./
COPY sensevoice_service ./sensevoice_service
COPY --from=build /app/sensevoice_service/native ./sensevoice_service/native
COPY samples ./samples

# MODEL is a hub id and not "auto": where the model cannot be had the container ends with exit code 3
# instead of serving the demo model.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    MODEL=iic/SenseVoiceSmall \
    MODELSCOPE_CACHE=/models \
    HF_HOME=/models/hf \
    TRITON_CACHE_DIR=/tmp/triton

USER sensevoice
VOLUME /models
EXPOSE 8000
STOPSIGNAL SIGTERM

# Failures do not count during the start period, which has room for the first download. Overloaded
# is no illness: a restart would only lose the work in hand.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20m --retries=4 \
    CMD ["python", "-m", "sensevoice_service.probe"]

# A process 1 is deaf to a signal until it has a handler for it, which takes Python a second or more
# of imports. As a child of another it ends at once.
ENTRYPOINT ["tini", "--"]
CMD ["python", "api.py"]
