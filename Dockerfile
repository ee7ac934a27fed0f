# One image for `serve` and `worker`.
FROM python:3.12-slim AS build
RUN pip install --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY activities ./activities
COPY mcp_server ./mcp_server
COPY workflows ./workflows
RUN uv venv /opt/durable-context && \
    uv pip install --python /opt/durable-context/bin/python --no-cache --constraint requirements.lock .

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 durable && install -d -o durable -g durable /data
COPY --from=build /opt/durable-context /opt/durable-context
ENV PATH=/opt/durable-context/bin:$PATH \
    DURABLE_CONTEXT_HOME=/data \
    PYTHONUNBUFFERED=1
USER durable
VOLUME /data
EXPOSE 8000
# A worker has no port: `docker run --no-healthcheck … worker`.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["durable-context"]
CMD ["serve", "--transport", "http", "--host", "0.0.0.0", "--port", "8000"]
