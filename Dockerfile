# One image for web, worker and migrations: what differs is the command.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements.txt requirements-dev.txt ./
# Dependencies first: they change less often than the code.
RUN python -m venv /venv && /venv/bin/pip install --require-hashes -r requirements.txt
# The build backend alone, pinned as everything else.
RUN awk '/^setuptools==/ {found=1} found {print} found && !/\\$/ {exit}' requirements-dev.txt > /tmp/build.txt \
    && /venv/bin/pip install --require-hashes -r /tmp/build.txt
COPY . .
# In place: gunicorn's configuration and the migrations are read from /app.
RUN /venv/bin/pip install --no-deps --no-build-isolation --editable . \
    && /venv/bin/pip uninstall --yes setuptools \
    && python -m compileall -q /app

FROM python:3.12-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin arkloop \
    && install --directory --owner 10001 --group 10001 /files
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ARKLOOP_HOST=0.0.0.0 \
    ARKLOOP_FILES_DIR=/files
WORKDIR /app
USER 10001:10001
EXPOSE 8080
CMD ["gunicorn", "--config", "python:arkloop.api.gunicorn_conf", "arkloop.api.app:create_app()"]
