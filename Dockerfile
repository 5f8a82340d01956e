# The image of shipper: docs/how-to/container.md
#
#   docker build --tag shipper:0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# Neither this file nor what it starts needs BuildKit. Without a network: any base with Python 3.11 or later and its
# venv module, and the files of the two lists in deploy/image/wheels (see the page):
#
#   docker build --network none --build-arg BASE=my-base --build-arg PIP_NO_INDEX=1 .
#
# The program is compiled in part where the base has a C compiler or Debian's packages of one, which stay in the build
# stage: --build-arg SHIPPER_PURE=1 goes without, --build-arg SHIPPER_REQUIRE_COMPILED=1 does not.

# The Python that every test runs on.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_NO_INDEX=
ENV PIP_FIND_LINKS=/build/image/wheels PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY deploy/image image/
# The environment gets no pip of its own, and its files their bytecode now: later the root is read-only.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/shipper && mkdir -p image/wheels \
 && tools/bin/pip install --require-hashes --requirement image/build-requirements.txt \
 && tools/bin/pip --python /opt/shipper/bin/python install --require-hashes --only-binary :all: \
      --requirement image/requirements.txt \
 # Of 400 services of AWS: the logs, and what gives credentials for them.
 && find /opt/shipper/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
      ! -name logs ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +
ARG SHIPPER_PURE=
ARG SHIPPER_REQUIRE_COMPILED=
# Where pip may ask nobody, there is no network for packages either.
RUN headers="$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
 && if [ -z "$PIP_NO_INDEX$SHIPPER_PURE" ] && command -v apt-get >/dev/null && ! { command -v gcc >/dev/null && [ -e "$headers" ]; }; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev $([ -e "$headers" ] || echo python3-dev); \
    fi
COPY pyproject.toml hatch_build.py README.md LICENSE source/
COPY shipper source/shipper/
COPY sinks source/sinks/
COPY man source/man/
# No index is asked any more, so nothing comes in that has no hash.
RUN tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheel source/ \
 && tools/bin/pip --python /opt/shipper/bin/python install --no-index --no-deps wheel/*.whl \
 && /opt/shipper/bin/shipper --version

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="shipper" \
      org.opencontainers.image.description="Ships Docker and application logs to databases and log services" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=build /opt/shipper /opt/shipper
# A named volume that is mounted here takes over owner and mode: the image's user, and group 0 for a container that
# runs as user 0 without capabilities. No VOLUME: one that nobody named would not follow to the next container.
RUN install -d -o 10001 -g 0 -m 0770 /var/lib/shipper
ENV PATH=/opt/shipper/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SHIPPER_LOG_FORMAT=json
USER 10001:10001
WORKDIR /
STOPSIGNAL SIGTERM
# Fails only when a restart could help; a sink that is away is no such case. Alerts belong on /readyz.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 CMD ["shipper", "healthcheck"]
ENTRYPOINT ["shipper"]
CMD ["run"]
