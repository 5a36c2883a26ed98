# Inference in a container; works in the repository and in the unpacked zip:
#   docker build --build-arg DEVICE=cuda --tag dbisl .
#   docker run --rm --network none --gpus all --user "$(id -u):$(id -g)" \
#       --volume /data/scans:/input:ro --volume /data/masks:/output dbisl
FROM python:3.11-slim

# cpu or cuda
ARG DEVICE=cpu

# No file is written but in /output; a user by number has no name and no home.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    USER=bundle \
    HOME=/tmp

WORKDIR /opt/bundle

COPY requirements-inference.txt ./
# PyPI's torch for Linux comes with CUDA; the one for the CPU is a tenth of its size and comes from PyTorch's own index.
RUN case "${DEVICE}" in \
        cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "DEVICE is ${DEVICE}; it is cpu or cuda." >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --requirement requirements-inference.txt

COPY LICENSE ./
COPY configs configs
COPY scripts scripts
COPY models models

RUN mkdir /input /output && chown 10001 /output
USER 10001

ENTRYPOINT ["python", "-m", "monai.bundle", "run", "inference", "--config_file", "['configs/inference.json','models/model.json']"]
# Any option of inference; with options of your own give these two as well.
CMD ["--input_dir", "/input", "--output_dir", "/output"]
