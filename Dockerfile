# cftjax on CPUs, from the lock: docker build -t cftjax .
# docker run --rm -v "$PWD:/work" cftjax train csv --data.file labels.csv -o runs/mine
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements/run.txt requirements/run.txt
RUN python -m venv /opt/cftjax \
 && /opt/cftjax/bin/pip install --no-cache-dir --require-hashes -r requirements/run.txt
COPY . .
RUN /opt/cftjax/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
COPY --from=build /opt/cftjax /opt/cftjax
ENV PATH=/opt/cftjax/bin:$PATH XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["cftjax"]
CMD ["--help"]
