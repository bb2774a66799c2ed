"""The registered model as MLflow loads it: in process from another folder, and behind MLflow's own scoring server."""

import base64
import io
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pandas
import pytest

from mgpt.serve.picture import sample_picture
from tests.conftest import ROOT, free_port, wait_for
from tests.fixtures_registry import SYSTEM

PROMPT = "[refer] the red circle"
SCRIPT = """
import sys, mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
table = pandas.DataFrame([{"image": open(sys.argv[2], "rb").read(), "prompt": sys.argv[3]}])
print(mlflow.pyfunc.load_model("models:/minigpt-v2@champion").predict(table, params={"max_new_tokens": 12}).to_json(orient="records"))
"""


@pytest.fixture
def picture(tmp_path):
    sample_picture().save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_another_process_in_another_folder_loads_it_by_alias(registry, picture, predictor, tmp_path_factory):
    command = [sys.executable, "-c", SCRIPT, registry.uri, str(picture), PROMPT]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(command, cwd=elsewhere, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    assert row["text"] == predictor.answer(sample_picture(), PROMPT, 12).text
    assert row["boxes"] == []


def test_mlflow_serves_it_over_http(registry, picture, predictor, tmp_path_factory):
    port, folder = free_port(), tmp_path_factory.mktemp("serving")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{SYSTEM}@champion", "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**environment(), "MLFLOW_TRACKING_URI": registry.uri, "PATH": path}
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", 180)
        row = {"image": base64.b64encode(picture.read_bytes()).decode(), "prompt": PROMPT}
        body = json.dumps({"dataframe_records": [row], "params": {"max_new_tokens": 12}}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answered:
            (row,) = json.load(answered)["predictions"]
    finally:
        server.terminate()
        server.wait(20)
    assert row == {"text": predictor.answer(sample_picture(), PROMPT, 12).text, "boxes": []}


def test_boxes_of_an_answer_are_a_list_of_pixels(registry, predictor, monkeypatch):
    """Random weights write no box, so the answer is given; everything after it is real."""
    from mgpt.evaluation.generation import Answer
    from mgpt.serve.pyfunc_model import MiniGPTModel

    monkeypatch.setattr("mgpt.evaluation.generation.answer", lambda *_, **__: [Answer("{<0><0><50><100>}", True)])
    model = MiniGPTModel()
    model.predictor = predictor
    content = io.BytesIO()
    sample_picture().save(content, "PNG")
    table = model.predict(None, pandas.DataFrame([{"image": content.getvalue(), "prompt": PROMPT}]))
    (box,) = table["boxes"][0]
    assert (box["label"], box["x2"], box["y2"]) == ("the red circle", 112.0, 224.0)
