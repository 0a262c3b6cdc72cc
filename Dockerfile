# A server of masks, on CPUs: `lesionseg serve` with the locked versions. docs/serving.md says more.
#   docker build --tag lesionseg .
#   docker run --rm --publish 127.0.0.1:8000:8000 --volume "$PWD/results/train_finetuned:/model:ro" lesionseg
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
RUN python -m venv /opt/lesionseg
ENV PATH=/opt/lesionseg/bin:$PATH
COPY requirements.lock requirements-cpu.lock ./
RUN pip install --no-deps --require-hashes --requirement requirements-cpu.lock \
        --extra-index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-deps --require-hashes --requirement requirements.lock
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE dvc.yaml params.yaml .dvcignore .gitignore ./
COPY .dvc/config .dvc/.gitignore ./.dvc/
COPY stages ./stages
COPY src ./src
RUN pip install --no-deps --no-build-isolation .

FROM python:3.13-slim
COPY --from=build /opt/lesionseg /opt/lesionseg
ENV PATH=/opt/lesionseg/bin:$PATH MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --create-home --uid 10001 lesionseg
USER 10001
WORKDIR /home/lesionseg
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["lesionseg", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "/model/model.pt"]
