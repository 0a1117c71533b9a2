"""`kedro run` does the whole job, from the command line, as a user types it."""

import json
import re
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from conftest import QUICK, ROOT, divide_photos, kedro, latest, log, report, run_kedro, start_kedro
from thawline.data.decoding import hash_files
from thawline.datasets.resource_datasets import metric_name
from thawline.networks.building import build_network
from thawline.networks.classifier import load_classifier
from thawline.options import ModelOptions

# The tests that need a finished run share one process, so that it is made once.
shares_a_run = pytest.mark.xdist_group("finished project")


def weights(project: Path) -> dict[str, torch.Tensor]:
    return load_file(latest(project, "06_models/classifier") / "model.safetensors")


@pytest.fixture(scope="module")
def run(finished_project: Path) -> mlflow.entities.Run:
    mlflow.set_tracking_uri(f"sqlite:///{finished_project}/mlflow.db")
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("thawline").experiment_id])
    return next(r for r in reversed(runs) if "train/loss" in r.data.metrics)


@shares_a_run
def test_every_parameter_is_a_parameter_of_the_run(run: mlflow.entities.Run, photos: Path) -> None:
    parameters = run.data.params
    assert parameters["dataset.root"] == str(photos)
    assert parameters["training.epochs"] == "2"
    assert parameters["model.backbone"] == "timm/tf_efficientnet_lite0"
    assert parameters["strategies.head_only.phases.0.trainable.last"] == "1"
    assert parameters["seed"] == "0" and parameters["strategy"] == "head_only"
    assert "None" not in parameters.values() and len(parameters) < 80
    assert not [name for name in parameters if name.startswith("params:")]
    assert max(len(value) for value in parameters.values()) < 500  # none is a whole group


@shares_a_run
def test_metrics_are_there_epoch_by_epoch(run: mlflow.entities.Run, finished_project: Path) -> None:
    history = report(finished_project, "history.csv")
    client = mlflow.MlflowClient()
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
        points = client.get_metric_history(run.info.run_id, metric_name(name))
        assert [p.step for p in points] == [1, 2]
        assert [p.value for p in points] == pytest.approx(history[name].tolist())
    assert run.data.metrics["val/best_accuracy"] == history["val_accuracy"].max()
    saved = report(finished_project, "metrics.json")
    for name in ("test_accuracy", "test_accuracy_low", "test_macro_f1", "test_loss"):
        assert run.data.metrics[metric_name(name)] == saved[name]


@shares_a_run
def test_the_classifier_says_how_it_came_about(finished_project: Path) -> None:
    file = latest(finished_project, "06_models/classifier") / "classifier.json"
    description = json.loads(file.read_text())
    assert description["training"]["chosen_strategy"] == "head_only"
    assert description["training"]["phases"][0]["epochs"] == 2
    assert description["class_names"] == ["flower", "temple"]
    assert description["versions"]["torch"] == torch.__version__.split("+")[0]
    assert description["preprocessing"]["size"] == 64


@shares_a_run
def test_tags_say_what_the_run_depends_on(run: mlflow.entities.Run) -> None:
    tags = run.data.tags
    assert "--params=dataset.root=" in tags["kedro_command"]
    assert tags["torch"] == torch.__version__.split("+")[0]
    assert tags["runner"] == "SequentialRunner"
    assert {"device", "python", "thawline", "kedro", "mlflow", "timm"} <= tags.keys()
    assert "git_commit" not in tags  # the project is no repository
    assert run.info.status == "FINISHED"


def test_a_failed_run_is_marked_so_with_its_parameters_and_its_commit(project: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(project)]
    for arguments in (["init", "-q"], ["add", "conf"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    for name, said in (
        ("dataset.root=nowhere", "dataset.root: 'nowhere' does not exist"),
        ("model.weights=nowhere.pth", "model.weights: 'nowhere.pth' does not exist"),
    ):
        done = kedro(project, "run", f"--params={name}")
        assert done.returncode == 1 and said in " ".join(done.stderr.split())
    (project / "one" / "ant").mkdir(parents=True)
    (project / "one" / "ant" / "1.jpg").touch()
    done = kedro(project, "run", "--params=dataset.root=one,seed=11")
    assert done.returncode == 1 and "Then repeat: kedro run" in done.stderr
    with sqlite3.connect(project / "mlflow.db") as database:
        ((status,),) = database.execute("select status from runs")  # what is absent begins none
        parameters = dict(database.execute("select key, value from params"))
        tags = dict(database.execute("select key, value from tags"))
    assert status == "FAILED"
    assert parameters["seed"] == "11" and parameters["training.optimizer"] == "adamw"
    assert len(tags["git_commit"]) == 40
    assert tags["git_dirty"] == "True"  # src was not added


@shares_a_run
def test_artifacts_and_the_data_set_are_logged(run: mlflow.entities.Run) -> None:
    client = mlflow.MlflowClient()
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {
        "splits.csv", "freeze_report.csv", "freeze_contract.json", "history.csv",
        "load_report.json", "learning_curves.json", "confusion_matrix.json", "metrics.json",
        "per_class_metrics.csv", "weak_spots.csv", "predictions.csv", "quarantine.csv",
        "finetune_report.html", "calibration.json", "reliability_diagram.json",
        "per_class_figure.json", "misclassified_images.webp", "class_balance.json",
        "image_sizes.json", "sample_images.webp", "training_views.webp", "label_errors.csv",
        "label_errors_grid.webp", "near_duplicates.csv", "near_duplicates_grid.webp",
        "outliers.csv", "outliers_grid.webp", "label_problems.json",
    } <= names  # fmt: skip
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "splits"


@shares_a_run
def test_the_model_of_the_run_answers_with_labels_for_paths_and_bytes(
    run: mlflow.entities.Run, finished_project: Path, photos: Path
) -> None:
    (logged,) = mlflow.search_logged_models(
        experiment_ids=[run.info.experiment_id],
        filter_string=f"source_run_id = '{run.info.run_id}'",
        output_format="list",
    )
    model = mlflow.pyfunc.load_model(logged.model_uri)
    assert model.metadata.metadata["class_names"] == ["flower", "temple"]
    assert model.metadata.signature is not None and model.input_example is not None
    predictions = pd.read_csv(latest(finished_project, "07_model_output/predictions.csv"))
    paths = [str(photos / path) for path in predictions["path"]]
    by_path = model.predict(paths)
    assert by_path["label"].tolist() == predictions["prediction"].tolist()
    by_bytes = model.predict(pd.DataFrame({0: [Path(p).read_bytes() for p in paths]}))
    assert by_bytes["label"].tolist() == predictions["prediction"].tolist()
    assert len(model.predict(model.input_example)) == 2


@shares_a_run
def test_nothing_is_written_outside_the_places_meant_for_it(finished_project: Path) -> None:
    names = {p.name for p in finished_project.iterdir()} - {"conf", "src", "pyproject.toml"}
    assert names <= {"data", "mlflow.db", "mlartifacts", ".telemetry", ".viz", "sessions"}


@shares_a_run
def test_no_table_of_the_run_and_no_artifact_names_an_absolute_path(
    run: mlflow.entities.Run, finished_project: Path, photos: Path, tmp_path: Path
) -> None:
    tables = [file for file in (finished_project / "data").rglob("*.csv") if file.is_file()]
    assert {"manifest.csv", "splits.csv", "predictions.csv"} <= {file.name for file in tables}
    assert not [file for file in tables if str(photos) in file.read_text()]
    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path))
    logged = [*Path(folder).glob("*.csv")]
    assert logged and not [file for file in logged if str(photos) in file.read_text()]


@shares_a_run
def test_a_moved_project_evaluates_its_model_on_moved_images(
    finished_project: Path, finished_copy: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "elsewhere" / "photos")
    record = latest(finished_copy, "05_model_input/splits.csv").with_name("splits.csv.root")
    assert record.read_text() == str(photos)
    record.write_text("/nowhere/photos")  # as if they had been moved, not copied
    root = f"--params=dataset.root={tmp_path}/elsewhere/photos"
    run_kedro(finished_copy, "run", "--pipeline=evaluate", root)
    entry = "07_model_output/predictions.csv"
    before, after = (pd.read_csv(latest(p, entry)) for p in (finished_project, finished_copy))
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.slow
@shares_a_run
def test_another_seed_gives_another_model_and_the_earlier_one_its_numbers_again(
    finished_project: Path, finished_copy: Path, photos: Path
) -> None:
    project, numbers = finished_copy, report(finished_copy, "metrics.json")
    first = latest(project, "06_models/classifier").parent.name
    other = f"--params=dataset.root={photos},seed=1,{QUICK}"  # a later model and other splits
    train = ("run", "--pipelines=finetune", "--to-nodes=calibrate_classifier", other)
    run_kedro(project, *train, cwd=project / "src")
    assert latest(project, "06_models/classifier").parent.name != first
    tables = [latest(p, "05_model_input/splits.csv") for p in (project, finished_project)]
    assert tables[0].read_bytes() != tables[1].read_bytes()
    heads = [weights(p)["classifier.weight"] for p in (project, finished_project)]
    assert not torch.equal(*heads)
    run_kedro(project, "run", "--pipeline=evaluate", f"--load-versions=classifier:{first}")
    assert report(project, "metrics.json") == numbers
    assert not (project / "src" / "mlflow.db").exists()


@pytest.mark.slow
@shares_a_run
def test_a_warm_start_tests_on_no_image_that_its_ancestors_have_seen(
    finished_project: Path, project: Path, photos: Path
) -> None:
    ancestor = latest(finished_project, "06_models/classifier")
    seen = {*(ancestor / "seen_images.txt").read_text().split()}
    assert len(seen) == 34
    start = f"dataset.root={photos},model.weights={ancestor}/model.safetensors,{QUICK}"
    said = run_kedro(project, "run", "--to-nodes=calibrate_classifier", f"--params={start}")
    assert "becomes training images" not in said  # the same seed: the same test images
    newer = latest(project, "06_models/classifier")
    assert {*(newer / "seen_images.txt").read_text().split()} == seen
    half = "dataset.fractions.train=0.35,dataset.fractions.test=0.5"
    other = f"--params={start},seed=1,{half}"
    only = ("--from-nodes=split_dataset", "--to-nodes=split_dataset")
    assert "become training images" in " ".join(run_kedro(project, "run", *only, other).split())
    splits = pd.read_csv(latest(project, "05_model_input/splits.csv"))
    tested = [str(photos / path) for path in splits.loc[splits["split"] == "test", "path"]]
    assert not {*hash_files(tested)} & seen


@pytest.mark.slow
def test_a_run_reads_what_it_wrote_though_another_writes_beside_it(
    project: Path, photos: Path
) -> None:
    for name in ("05_model_input/splits.csv", "06_models/classifier"):  # as of a run that is later
        (project / "data" / name / "2999-01-01T00.00.00.000Z" / Path(name).name).mkdir(parents=True)
    # Without epochs the loaded network is only evaluated.
    options = f"dataset.root={photos},{QUICK.replace('epochs=2', 'epochs=0')}"
    said = run_kedro(project, "run", "--to-nodes=evaluate_model", f"--params={options}")
    assert "test images are right" in said
    assert report(project, "history.csv").empty


@shares_a_run
def test_two_runs_with_one_seed_are_identical(
    finished_project: Path, project: Path, photos: Path
) -> None:
    options = f"--params=dataset.root={photos},{QUICK}"
    run_kedro(project, "run", "--to-nodes=calibrate_classifier", options)  # no name: finetune
    tables = [latest(p, "05_model_input/splits.csv") for p in (project, finished_project)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    first, second = weights(project), weights(finished_project)
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.slow
def test_a_resnet50_file_and_an_unfrozen_stage_from_the_command_line(
    project: Path, photos: Path
) -> None:
    torch.manual_seed(0)
    source = models.resnet50().state_dict()
    torch.save(source, project / "mine.pth")
    model = f"model.backbone=resnet50,model.weights={project}/mine.pth,strategy=freeze_to_layer3"
    options = ("--to-nodes=calibrate_classifier", f"--params=dataset.root={photos},{model},{QUICK}")
    said = run_kedro(project, "run", "--pipeline=finetune", *options)
    said = " ".join(said.split())  # the console wraps its lines
    assert "318 backbone tensors loaded" in said
    assert "replaced by a new head: fc.weight, fc.bias" in said
    trained = load_file(latest(project, "06_models/last_classifier") / "model.safetensors")
    for name, tensor in source.items():
        if name.startswith(("conv1", "bn1", "layer1", "layer2", "layer3")):
            assert torch.equal(trained[name], tensor), name
    assert not torch.equal(trained["layer4.2.conv3.weight"], source["layer4.2.conv3.weight"])
    contract = report(project, "freeze_contract.json")
    assert contract[0]["sha256_before"] == contract[0]["sha256_after"]


def test_a_leak_stops_the_run_before_training_and_a_damaged_file_does_not(
    project: Path, photos: Path, tmp_path: Path
) -> None:
    root = divide_photos(photos, tmp_path / "leaky", train=range(12), test=range(8, 14))
    damaged = root / "train" / "temple" / "00.jpg"
    damaged.write_bytes(damaged.read_bytes()[:500])
    done = kedro(project, "run", "--pipeline=finetune", f"--params=dataset.root={root},{QUICK}")
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "8 test image(s) are also in another split" in said
    assert f"{root}/test/flower/08.jpg (flower) is in train as {root}/train/flower/08.jpg" in said
    assert "screening.on_leak=warn" in said and "Traceback" not in said
    assert "1 truncated" in said
    quarantine = pd.read_csv(project / "data/08_reporting/quarantine.csv")
    lost = quarantine.loc[~quarantine["kept"], ["path", "problem"]]
    assert lost.to_numpy().tolist() == [["train/temple/00.jpg", "truncated"]]
    assert not (project / "data/06_models").exists()


def test_scratch_starts_from_random_weights_and_tables_may_be_parquet(
    project: Path, photos: Path
) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    (catalog,) = re.findall(r"```yaml\n(manifest:.*?)```", text, re.DOTALL)
    (project / "conf" / "local" / "catalog.yml").write_text(catalog)
    paths = sorted(photos.glob("*/*.jpg"), reverse=True)
    rows = [(str(path), path.parent.name, f"{path.parent.name} {path.stem}") for path in paths]
    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    table.to_parquet(project / "list.parquet")
    data = "dataset.root=list.parquet,dataset.allow_external_paths=true"
    options = f"--params={data},strategy=scratch,{QUICK}"
    said = run_kedro(project, "run", "--pipeline=finetune", "--to-nodes=build_model", options)
    assert "random weights instead of default" in " ".join(said.split())
    (file,) = (project / "data/05_model_input").glob("splits.parquet/*/splits.parquet")
    splits = pd.read_parquet(file)
    assert [str((project / path).resolve()) for path in splits["path"]] == sorted(table["path"])
    assert set(splits["label"]) == {"flower", "temple"} and "sha256" not in splits


def test_a_mistake_ends_in_one_clear_message(project: Path) -> None:
    parameters = "trian.lr=3,training.epochs=-1"
    done = kedro(project, "run", "--pipeline=finetune", f"--params={parameters}")
    said = done.stdout + done.stderr
    assert done.returncode == 1
    for words in ("trian: unknown", "did you mean 'training'", "training.epochs", "given -1"):
        assert words in said
    assert "Traceback" not in said
    assert done.stderr.count("Error: ") == 1
    assert not list((project / "data").rglob("*.*"))


def test_an_unknown_pipeline_is_named_with_the_nearest(project: Path) -> None:
    done = kedro(project, "run", "--pipeline=finetun")
    assert done.returncode == 1
    assert "'finetun'" in done.stderr and "finetune" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_strategy_of_ones_own_is_trained_and_without_a_store_nothing_is_written(
    project: Path, photos: Path
) -> None:
    (project / "conf" / "local" / "parameters_mine.yml").write_text(
        "strategies: {mine: {phases: [{trainable: {last: 1}, epochs: 1, lr: 0.1},"
        " {trainable: [head, 'blocks.6.*.conv_pw.*'], epochs: 1, lr: 0.01, batch_norm: eval},"
        " {trainable: {lora: {stages: 2, rank: 4}}, epochs: 1, lr: 0.01}]}}"
    )
    options = f"dataset.root={photos},strategy=mine,transforms.size=32,training.num_workers=0"
    options += ",activations.max_gb=0"
    run_kedro(project, "run", "--to-nodes=calibrate_classifier", f"--params={options}")
    layers = report(project, "freeze_report.csv")
    thawed = layers[(layers["phase"] == 2) & (layers["trainable"] > 0)]
    assert thawed["stage"].tolist() == ["blocks.6", "head"]
    contract = report(project, "freeze_contract.json")
    assert [record["phase"] for record in contract] == [1, 2, 3]
    assert not (project / "data/04_feature").exists()
    load_classifier(latest(project, "06_models/classifier"))
    ordinary, _ = build_network(ModelOptions(weights="none"), 2, 32, seed=0)
    assert weights(project).keys() == ordinary.state_dict().keys()


GRADUAL = f"strategy=gradual,{QUICK.replace('training.epochs=2', 'training.epochs=1')}"


@pytest.fixture(scope="module")
def gradual(module_project: Path, photos: Path) -> Path:
    """Return a project in which a strategy of six phases has been run."""
    options = f"--params=dataset.root={photos},{GRADUAL}"
    run_kedro(module_project, "run", "--to-nodes=calibrate_classifier", options)
    return module_project


@pytest.mark.xdist_group("gradual project")
def test_phases_lines_and_rates_are_in_the_history_and_in_mlflow(gradual: Path) -> None:
    history = report(gradual, "history.csv")
    assert history["phase"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["thaw_line"].is_unique
    assert history["trainable_parameters"].is_monotonic_increasing
    with sqlite3.connect(gradual / "mlflow.db") as database:
        metrics = dict(database.execute("select key, count(*) from metrics group by key"))
        tags = dict(database.execute("select key, value from tags order by rowid"))
    own = ("phase", "trainable_parameters", "lr/head")
    assert [metrics[f"train/{name}"] for name in own] == [6, 6, 6]
    assert metrics["train/lr/blocks.6"] == 5 and metrics["train/lr/blocks.2"] == 1
    assert tags["strategy"] == tags["chosen_strategy"] == "gradual"
    contract = report(gradual, "freeze_contract.json")
    assert [record["phase"] for record in contract] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.xdist_group("gradual project")
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    project: Path, gradual: Path, photos: Path
) -> None:
    options = f"--params=dataset.root={photos},{GRADUAL}"
    states = project / "data" / "06_models" / "training_checkpoints"
    process = start_kedro(project, "run", "--to-nodes=calibrate_classifier", options)
    while not list(states.glob("*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    resumed = f"{options},training.resume=true"
    said = run_kedro(project, "run", "--to-nodes=calibrate_classifier", resumed)
    assert "Resuming after epoch" in said
    for name, tensor in weights(gradual).items():
        assert torch.equal(weights(project)[name], tensor), name
    (state,) = states.iterdir()  # to add epochs to
    assert state.name.endswith(".finished.pt")
    with sqlite3.connect(project / "mlflow.db") as database:
        statuses = database.execute("select status from runs order by start_time").fetchall()
    assert statuses == [("KILLED",), ("FINISHED",)]


@pytest.mark.slow
@shares_a_run
def test_more_epochs_go_on_after_the_last_one(finished_copy: Path, photos: Path) -> None:
    project, first = finished_copy, report(finished_copy, "history.csv")
    more = QUICK.replace("training.epochs=2", "training.epochs=3")
    options = f"--params=dataset.root={photos},{more},training.resume=true"
    said = run_kedro(project, "run", "--to-nodes=calibrate_classifier", options)
    assert "Resuming after epoch 2" in said and "Epoch 2:" not in said
    history = report(project, "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(history[:2], first)
    with sqlite3.connect(project / "mlflow.db") as database:
        (run,) = database.execute("select run_uuid from runs order by start_time desc limit 1")
        rows = database.execute(
            "select step from metrics where run_uuid = ? and key = 'val/loss' order by step", run
        )
        assert [step for (step,) in rows] == [1, 2, 3]


def test_auto_without_a_budget_fits_all_stages_and_says_why(project: Path, photos: Path) -> None:
    options = f"dataset.root={photos},strategy=auto,auto.budget_minutes=0,{QUICK}"
    said = run_kedro(project, "run", "--to-nodes=calibrate_classifier", f"--params={options}")
    choice = report(project, "strategy_choice.json")
    assert (choice["strategy"], choice["chosen_strategy"]) == ("auto", "all_stages")
    assert choice["strategy_reason"] in " ".join(said.split()).replace("│ │ ", "")
    candidates = report(project, "candidates.csv")
    assert candidates["strategy"].tolist() == ["all_stages"]
    assert candidates["size"].tolist() == [64]


@pytest.mark.slow
def test_a_head_on_all_stages_is_reported_and_predicts_as_it_was_evaluated(
    project: Path, photos: Path
) -> None:
    options = f"dataset.root={photos},strategy=all_stages,{QUICK}"
    run_kedro(project, "run", "--pipeline=finetune", f"--params={options}")
    figure = report(project, "stage_contributions.json")
    assert len(figure["data"][0]["x"]) == 9  # the stem, seven blocks and the last layer
    assert "loses without a stage" in report(project, "finetune_report.html")
    evaluated = pd.read_csv(latest(project, "07_model_output/predictions.csv"))
    run_kedro(project, "run", "--pipeline=predict", f"--params=predict.root={photos},{QUICK}")
    labeled = pd.read_parquet(project / "data/07_model_output/folder_labels.parquet")
    found = labeled.assign(name=labeled["path"].map(lambda path: "/".join(Path(path).parts[-2:])))
    found = found.set_index("name")["label"]
    names = evaluated["path"].map(lambda path: "/".join(Path(path).parts[-2:]))
    assert found[names].tolist() == evaluated["prediction"].tolist()


@pytest.mark.slow
def test_the_rate_is_swept_on_the_command_line(project: Path, photos: Path) -> None:
    options = f"dataset.root={photos},strategy=auto,lr_find.steps=20,{QUICK}"
    said = run_kedro(project, "run", "--pipeline=lr_find", f"--params={options}")
    suggested = report(project, "suggested_lr.json")
    assert f"Suggested: training.lr={suggested['suggested_lr']:.2g}" in said
    sweep = report(project, "lr_range_test.csv")
    assert suggested["suggested_lr"] in sweep["lr"].tolist()


@pytest.mark.slow
@shares_a_run
def test_a_second_run_computes_no_activations_and_gives_the_same_weights(
    finished_copy: Path, photos: Path
) -> None:
    project, first = finished_copy, weights(finished_copy)
    some = ("--from-nodes=build_transforms", "--to-nodes=calibrate_classifier")
    run_kedro(project, "run", *some, f"--params=dataset.root={photos},{QUICK}")
    assert "96 activations were read, 0 computed" in log(project)
    second = weights(project)
    assert all(torch.equal(first[name], second[name]) for name in first)
    entries = ("05_model_input/splits.csv", "06_models/classifier")
    splits, classifier = (latest(project, entry).parent.name for entry in entries)
    assert splits == classifier  # the second has splits of its own too, to be evaluated on
    shown = run_kedro(project, "activations")
    assert "EfficientNet up to global_pool_flatten, random views" in shown
    assert "56" in shown and "of at most 10 GB" in shown
