"""A champion gives one answer: on a folder, over HTTP, and as ONNX without Thawline."""

import base64
import io
import json
import os
import re
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image

from conftest import QUICK, ROOT, kedro, latest, report, run_command, run_kedro
from golden.records import write_digits
from helpers.browser import served

pytestmark = pytest.mark.xdist_group("finished project")


def registered(project: Path) -> str:
    """Return the name of the registered model."""
    return report(project, "registration.json")["registered_model"]


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of all kinds, and of files that are none."""
    folder = tmp_path_factory.mktemp("folder")
    photo = Image.open(photos / "temple" / "03.jpg")
    photo.save(folder / "plain.jpg")
    cut = Image.new("L", photo.size, 255)
    cut.paste(0, (20, 20, 70, 60))
    transparent = photo.copy()
    transparent.putalpha(cut)
    transparent.save(folder / "alpha.png")
    photo.convert("L").save(folder / "gray.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.open(photos / "flower" / "07.jpg").save(folder / "turned.jpg", exif=exif)
    deep = np.asarray(photo.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "bad").mkdir()
    (folder / "bad" / "empty.jpg").touch()
    (folder / "bad" / "text.txt").write_text("no image")
    (folder / "bad" / "cut.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def table(finished_project: Path, folder: Path) -> pd.DataFrame:
    """Return what `kedro run --pipeline=predict` says of the folder."""
    root = f"--params=predict.root={folder}"
    said = " ".join(run_kedro(finished_project, "run", "--pipeline=predict", root).split())
    model = f"models:/{registered(finished_project)}/1"
    assert f"Predicting 9 files with {model} (2 classes: flower, temple; saved " in said
    assert "3 of 9 files cannot be read" in said
    return pd.read_parquet(finished_project / "data/07_model_output/folder_labels.parquet")


def test_the_first_model_of_a_project_is_its_champion(finished_project: Path) -> None:
    registration = report(finished_project, "registration.json")
    assert registration["registered_version"] == registration["champion_version"] == "1"
    assert "it is the first version" in registration["registration_reason"]


def test_every_file_of_the_folder_is_a_row(table: pd.DataFrame, folder: Path) -> None:
    names = [Path(path).relative_to(folder).as_posix() for path in table["path"]]
    bad = ["bad/cut.jpg", "bad/empty.jpg", "bad/text.txt"]
    readable = ["cmyk.jpg", "deep.png", "gray.png", "plain.jpg", "turned.jpg"]
    assert names == ["alpha.png", *bad, *readable]
    assert table["problem"].notna().tolist() == [name in bad for name in names]
    good = table[table["problem"].isna()]
    assert set(good["label"]) <= {"flower", "temple"} and good["probability"].between(0.5, 1).all()


def test_a_second_prediction_replaces_the_table_and_the_first_is_in_mlflow(
    table: pd.DataFrame, finished_copy: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "plain.jpg", tmp_path / "one")
    run_kedro(finished_copy, "run", "--pipeline=predict", f"--params=predict.root={tmp_path}/one")
    again = pd.read_parquet(finished_copy / "data/07_model_output/folder_labels.parquet")
    assert again["path"].tolist() == [f"{tmp_path}/one/plain.jpg"]
    mlflow.set_tracking_uri(f"sqlite:///{finished_copy}/mlflow.db")
    runs = mlflow.search_runs(experiment_names=["thawline predictions"], output_format="list")
    counts = [run.data.tags.get("files") for run in runs if "files" in run.data.tags]
    assert counts[0] == "1" and "9" in counts
    files = mlflow.MlflowClient().list_artifacts(runs[0].info.run_id)
    assert "folder_predictions.csv" in [file.path for file in files]


@pytest.mark.slow
def test_photographs_after_digits_are_predicted_by_the_model_of_the_photographs(
    project: Path, photos: Path, tmp_path: Path
) -> None:
    digits = write_digits(tmp_path / "digits", images_per_class=20)
    for root in (digits, photos):
        options = f"--params=dataset.root={root},{QUICK.replace('size=64', 'size=32')}"
        said = run_kedro(project, "run", "--to-nodes=register_model", options)
        assert "thawline predict IMAGES: this model, version 1 of '" in said
    said = run_kedro(project, "run", "--pipeline=predict", f"--params=predict.root={photos}")
    assert "(2 classes: flower, temple; saved " in " ".join(said.split())
    found = pd.read_parquet(project / "data/07_model_output/folder_labels.parquet")
    assert set(found["label"]) == {"flower", "temple"}


def test_images_of_one_class_alone_are_unlike_those_of_both(
    finished_project: Path, photos: Path
) -> None:
    root = f"--params=drift.root={photos / 'flower'}"
    said = run_kedro(finished_project, "run", "--pipeline=drift", root)
    assert "unlike the held-out ones (p = 0.0" in " ".join(said.split())
    classes = report(finished_project, "drift_classes.csv")
    assert classes["share_now"].sum() == pytest.approx(1)
    assert len(report(finished_project, "drift_images.csv")) == 20
    page = report(finished_project, "drift_report.html")
    assert "differ from" in page and "flower" in page


def test_a_mistake_ends_in_one_clear_message(finished_project: Path) -> None:
    wrong = "--params=predict.root=nowhere"
    done = kedro(finished_project, "run", "--pipeline=predict", wrong)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "predict.root: 'nowhere' does not exist" in done.stderr


def test_code_that_a_classifier_names_is_never_run(
    finished_project: Path, folder: Path, tmp_path: Path
) -> None:
    evil, marker = tmp_path / "classifier", tmp_path / "marker"
    shutil.copytree(latest(finished_project, "06_models/classifier"), evil)
    description = json.loads((evil / "classifier.json").read_text())
    command = {"args": ["touch", str(marker)]}
    description["model"] |= {"backbone": "subprocess:check_call", "arguments": command}
    (evil / "classifier.json").write_text(json.dumps(description))
    for options in (
        ("--pipeline=predict", f"--params=predict.root={folder},predict.model={evil}"),
        ("--pipeline=export", f"--params=export.model={evil}"),
    ):
        done = kedro(finished_project, "run", *options)
        assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
        assert "names the factory subprocess:check_call" in " ".join(done.stderr.split())
    assert not marker.exists()


LIMITS = {"max_images": 10, "max_mb": 0.5, "max_megapixels": 0.3}


def serving(project: Path) -> AbstractContextManager[str]:
    """Serve the champion of a project as the documentation says; yield the address."""
    model = f"models:/{registered(project)}@champion"
    command = ("mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local")
    variables = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db",
        # `mlflow` starts the server by `python`, which must be this one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_PYFUNC_INFERENCE_CONFIG": json.dumps(LIMITS),
    }
    return served(project, *command, page="/ping", **variables)


def ask(address: str, contents: list[bytes], **more: object) -> requests.Response:
    data = [[base64.b64encode(content).decode()] for content in contents]
    body = {"dataframe_split": {"columns": [0], "data": data}, **more}
    return requests.post(f"{address}/invocations", json=body, timeout=120)


@pytest.mark.slow
def test_http_and_python_answer_as_predict_and_http_names_what_it_cannot_read(
    finished_project: Path, table: pd.DataFrame, photos: Path
) -> None:
    good = table[table["problem"].isna()]
    contents = [Path(path).read_bytes() for path in good["path"]]
    mlflow.set_tracking_uri(f"sqlite:///{finished_project}/mlflow.db")
    champion = mlflow.pyfunc.load_model(f"models:/{registered(finished_project)}@champion")
    with serving(finished_project) as address:
        answer = ask(address, contents, params={"top_k": 2})
        assert answer.status_code == 200, answer.text
        found = pd.DataFrame(answer.json()["predictions"])
        assert found["label_2"].tolist() == good["label_2"].tolist()
        for own in (found, champion.predict(pd.DataFrame({0: contents}))):
            assert own["label"].tolist() == good["label"].tolist()
            assert own["set"].tolist() == good["set"].tolist()
            assert own["reason"].isna().tolist() == good["reason"].isna().tolist()
            for column in ("probability", "distance"):
                expected = pytest.approx(good[column].tolist(), rel=1e-5, abs=1e-6)
                assert own[column].tolist() == expected
        (one,) = ask(address, contents[:1]).json()["predictions"]
        assert one.keys() == {"label", "probability", "set", "distance", "reason"}
        refused = ask(address, [contents[0], b"no image", contents[1]])
        assert refused.status_code == 400
        assert "Image 2 cannot be read: not an image." in refused.json()["message"]
        assert "Traceback" not in refused.text
        assert ask(address, contents[:1], params={"top_k": 0}).status_code == 400
        path = str(photos / "temple" / "00.jpg")  # over HTTP no file of the server is opened
        for data in ({"dataframe_split": {"columns": [0], "data": [[path]]}}, {"inputs": [path]}):
            answer = requests.post(f"{address}/invocations", json=data, timeout=60)
            assert answer.status_code == 400, answer.text
        kind = {"Content-Type": "text/csv"}
        answer = requests.post(f"{address}/invocations", f"0\n{path}\n", headers=kind, timeout=60)
        assert answer.status_code == 400 and "is not the bytes of a file" in answer.text
        large = io.BytesIO()
        Image.new("L", (1000, 301)).save(large, format="png")
        for too_much, limit in (
            ([large.getvalue()], "Image 1 has 1000 x 301 px, but max_megapixels is 0.3."),
            ([bytes(600_000)], "The request has 0.6 MB, but max_mb is 0.5."),
            (contents[:1] * 11, "The request has 11 images, but max_images is 10."),
        ):
            refused = ask(address, too_much)
            assert refused.status_code == 400 and limit in refused.json()["message"]


@pytest.mark.slow
def test_the_documented_example_gives_the_same_labels_without_thawline(
    finished_project: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    run_kedro(finished_project, "run", "--pipeline=export", "--params=export.model=champion")
    shutil.copytree(latest(finished_project, "06_models/onnx"), tmp_path / "onnx")
    good = table[table["problem"].isna()]
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (example,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "onnxruntime" in b)
    assert "thawline" not in example
    files = f"files = {good['path'].tolist()}"
    (tmp_path / "example.py").write_text(re.sub(r"(?m)^files = .*$", files, example))
    said = run_command(tmp_path, sys.executable, "example.py", timeout=120)
    rows = [line.split() for line in said.splitlines()]
    assert [row[0] for row in rows] == good["path"].tolist()
    assert [row[1] for row in rows] == good["label"].tolist()
    shares = [float(row[2]) for row in rows]
    assert shares == pytest.approx(good["probability"].tolist(), abs=1e-4)
