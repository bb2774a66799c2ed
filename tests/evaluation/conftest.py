"""Small real inputs: random bases, trained-shaped weights, and held-out samples of the shapes world."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mgpt.data.boxes import Box
from mgpt.data.sample import Sample, Turn
from mgpt.data.scenes import language
from mgpt.data.scenes.world import Scene, draw, scenes
from mgpt.settings.evaluation import RepairSettings


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    from tests.fixtures_train import make_bases

    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session")
def checkpoints(bases, tmp_path_factory):
    """Two folders as training leaves them, with different projections."""
    import torch

    from mgpt.model import MiniGPTForConditionalGeneration, MiniGPTProcessor

    folders = {}
    for seed, name in enumerate(("pretrain", "instruct"), start=1):
        model = MiniGPTForConditionalGeneration.from_bases(**bases, seed=seed)
        with torch.no_grad():
            model.projection.weight.mul_(40)  # strong enough for pictures to change the answers
        folders[name] = tmp_path_factory.mktemp("weights") / name
        model.save_trainable(folders[name], MiniGPTProcessor.from_config(model.config, bases["language"]))
    return folders


@pytest.fixture(scope="session")
def samples():
    """Every task of forty test scenes."""
    return [sample for scene in scenes("test", 40, 7) for sample in scene_samples(scene)]


def scene_samples(scene: Scene) -> list[Sample]:
    rng = np.random.default_rng(scene.index)
    kinds = [thing.kind for thing in scene.things]
    grounded, boxes = language.grounded_caption(scene)
    made = [
        sample(scene, "caption", "", language.caption(scene, rng), extra={"objects": kinds}),
        sample(scene, "describe", "", language.description(scene), extra={"objects": kinds}),
        sample(scene, "grounding", "", grounded, tuple(Box(*box) for box in boxes), extra={"objects": kinds}),
    ]
    for number, thing in enumerate(scene.things):
        for expression in language.expressions(scene, thing):
            key = {"key": f"{scene.name}_{number}", "objects": kinds}
            made.append(sample(scene, "refer", expression, "<box:0>", (Box(*thing.box),), key))
            made.append(sample(scene, "identify", "<box:0>", expression, (Box(*thing.box),), key))
    for question in language.questions(scene, rng)[:3]:
        turns = (Turn("user", question.question), Turn("assistant", question.answers[0], question.answers))
        made.append(sample(scene, "vqa", "", "", extra={"kind": question.kind, "objects": kinds}, turns=turns))
    return made


def sample(scene, task, user, assistant, boxes=(), extra=None, turns=None):
    picture = io.BytesIO()
    draw(scene).save(picture, "PNG")
    return Sample.create(
        dataset="shapes",
        split="test",
        task=task,
        image=picture.getvalue(),
        width=scene.canvas,
        height=scene.canvas,
        turns=turns or (Turn("user", user), Turn("assistant", assistant)),
        boxes=boxes,
        licence="CC0-1.0",
        source=f"{scene.name}",
        extra=extra or {},
    )


class Endpoint(BaseHTTPRequestHandler):
    """Speaks the chat completions protocol; refuses a wrong key, fails as often as told."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.headers.get("Authorization") != "Bearer secret":
            return self.reply(401, {"error": {"message": "wrong key"}})
        if server.failures:
            server.failures -= 1
            return self.reply(503, {"error": {"message": "busy"}})
        paragraph = body["messages"][1]["content"]
        return self.reply(200, server.content or {"choices": [{"message": {"role": "assistant", "content": server.mend(paragraph)}}]})

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.seen, server.failures, server.content = [], 0, None
    server.mend = lambda paragraph: paragraph.replace("sqare", "square")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("REPAIR_KEY", "secret")
    server.settings = RepairSettings(url=f"http://127.0.0.1:{server.server_port}/v1", model="mender", key_variable="REPAIR_KEY", attempts=2)
    yield server
    server.shutdown()
    server.server_close()
