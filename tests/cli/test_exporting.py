from __future__ import annotations

import json

import onnxruntime


def test_export_writes_the_latest_run_s_model_and_tells_how_near_it_is(cli, finished, tmp_path):
    file = tmp_path / "model.onnx"
    done = cli("export", finished / "runs", "--onnx", file, "--json")
    assert done.status == 0
    told = done.json
    assert (told["status"], told["file"]) == ("ok", str(file))
    assert told["largest_difference"] < 1e-4
    assert "3 classes; outputs for images of 5 shapes are the model's within" in done.err
    about = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["bee", "cat", "dog"]


def test_export_says_what_is_missing(cli, finished, tmp_path):
    assert "there is no model" in cli("export", tmp_path, "--onnx", tmp_path / "a").complaint
    assert "--onnx" in cli("export", finished / "runs").complaint
    done = cli("export", finished / "runs", "--onnx", tmp_path / "no" / "model.onnx")
    assert (done.status, "no/model.onnx" in done.complaint) == (2, True)
