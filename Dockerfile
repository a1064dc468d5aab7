# Two images: `docker build --target cpu .` (the default) and `docker build --target gpu .`
# Both run as user 10001 without any capability, on a read-only root; only /var/lib/hilum is written.

FROM debian:bookworm-slim AS system
COPY deploy/install.sh /usr/local/sbin/hilum-install
RUN hilum-install packages && hilum-install account

FROM system AS build-cpu
COPY . /source
RUN hilum-install application /source cpu

FROM system AS build-gpu
COPY . /source
RUN hilum-install application /source gpu

FROM system AS runtime
ENV PATH=/opt/hilum/bin:$PATH \
    HILUM_CONFIG=/etc/hilum/node.toml \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/hilum
VOLUME /var/lib/hilum
EXPOSE 11112 9321 9322 9323
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9321/healthz', timeout=3)"]
ENTRYPOINT ["hilum"]
CMD ["serve"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/hilum /opt/hilum
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build-cpu /opt/hilum /opt/hilum
