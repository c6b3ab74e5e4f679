# An image that serves a bundle, without torch:
#     docker build -t tinyheads .
#     docker run --rm -p 8000:8000 -v "$PWD/runs/demo/bundle:/bundle:ro" tinyheads
# More bundles or options: docker run ... tinyheads /bundle /other --threads 2
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tinyheads tinyheads
COPY distill distill
COPY teachers teachers
COPY students students
COPY export export
RUN python -m venv --without-pip /opt/tinyheads \
 && python -m pip --python /opt/tinyheads/bin/python install --no-cache-dir -c constraints.txt '.[serve]'

FROM python:3.11-slim
COPY --from=build /opt/tinyheads /opt/tinyheads
RUN useradd --system --uid 10001 --no-create-home tinyheads
USER 10001
ENV PATH=/opt/tinyheads/bin:$PATH
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as ask; ask.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["distill", "serve", "--host", "0.0.0.0"]
CMD ["/bundle"]
