# One image for all roles: `docker run telemetry-pipeline ROLE`. What builds it stays behind in the first stages.

FROM python:3.11-slim AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/venv
# The dependencies alone, so that a change of code does not install them again
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
    && pip --python /opt/venv/bin/python install -c constraints.txt -r requirements.txt

FROM dependencies AS application
COPY README.md ./
COPY pipeline pipeline
COPY api api
COPY simulator simulator
RUN pip --python /opt/venv/bin/python install --no-deps .

FROM application AS application-notebook
RUN pip --python /opt/venv/bin/python install -c constraints.txt '.[notebook]'

# The views of data/catalog.duckdb name `data/lake`, relative to the working directory: so data is mounted at /app/data.
FROM python:3.11-slim AS base
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin telemetry \
    && install --directory --owner telemetry --group telemetry /app /app/data
WORKDIR /app
USER telemetry

FROM base AS notebook
COPY --from=application-notebook /opt/venv /opt/venv
ENTRYPOINT ["jupyter"]
CMD ["lab", "--ip=0.0.0.0", "--no-browser", "--notebook-dir=/app/notebooks"]

FROM base AS pipeline
COPY --from=application /opt/venv /opt/venv
ENTRYPOINT ["telemetry"]
CMD ["--help"]
