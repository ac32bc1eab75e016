# Serves an export over HTTP, without torch and not as root: docs/how-to/containers.md
FROM python:3.13-slim-trixie AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir --no-compile -c constraints.txt .

FROM python:3.13-slim-trixie
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin bertsmith
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    BERTSMITH_RUN=/model \
    BERTSMITH_HOST=0.0.0.0
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"AIP_HTTP_PORT\", 8080)}/ready')"]
ENTRYPOINT ["bertsmith"]
CMD ["serve"]
