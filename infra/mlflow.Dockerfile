# The MLflow server of infra/compose.yaml, in the clients' version.
#
# build   docker compose -f infra/compose.yaml build mlflow
# check   docker compose -f infra/compose.yaml run --rm mlflow mlflow --version
FROM python:3.11.7-slim-bookworm
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt mlflow boto3 && rm /tmp/constraints.txt
RUN useradd --create-home --uid 1000 mlflow && mkdir /data && chown mlflow /data
USER mlflow
EXPOSE 5000
