BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'sweep-3fe24e6b');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'identity','{"seed": 0, "strategy": "head_only", "strategies": {"head_only": {"weights": null, "phases": [{"trainable": {"last": 1}, "epochs": 5, "lr": 0.005, "lr_decay": 1.0, "stage_lr": {}, "batch_norm": "train", "optimizer": null, "schedule": null, "patience": null}]}}, "transforms": {"size": null, "resize": null, "interpolation": null, "mean": null, "std": null, "crop_scale": 0.08, "rotation": 15.0, "horizontal_flip": 0.5}, "augmentation": {"views": 4, "mixup": 0.0, "cutmix": 0.0}, "model": {"backbone": "timm/tf_efficientnet_lite0", "weights": "default", "arguments": {}, "trust_pickle": false, "min_loaded": 0.95, "head": "linear", "head_hidden": 256, "head_dropout": null, "keep_head_rows": true, "log_probabilities": false}, "auto": {"by": "size", "small": 10000, "large": 100000, "probe_accuracy": 0.9}, "training": {"epochs": null, "lr": null, "batch_size": 32, "accumulate": 1, "optimizer": "adamw", "momentum": 0.9, "weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine", "step_epochs": 10, "step_factor": 0.1, "label_smoothing": 0.0, "class_weights": "none", "sampling": "shuffled", "ema": null, "clip_norm": null, "monitor": "val_accuracy", "patience": null, "device": "auto", "precision": "auto"}, "dataset": {"seed": null}, "space": {"model.head_dropout": {"type": "float", "low": 0.0, "high": 0.5, "log": false, "step": null, "choices": [], "strategies": []}, "training.label_smoothing": {"type": "float", "low": 0.0, "high": 0.2, "log": false, "step": null, "choices": [], "strategies": []}, "training.lr": {"type": "float", "low": 0.0005, "high": 0.05, "log": true, "step": null, "choices": [], "strategies": []}, "training.weight_decay": {"type": "float", "low": 0.0001, "high": 0.1, "log": true, "step": null, "choices": [], "strategies": []}}, "images": "534ad9dab62806727f690119bcd17fb804f1e7ccb60b3b44b741f32860e06754"}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'training.lr',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0005, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(2,2,'training.lr',0.02,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0005, "high": 0.05, "log": true}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'val_accuracy','0.5');
INSERT INTO "trial_user_attributes" VALUES(2,1,'val_loss','1.0');
INSERT INTO "trial_user_attributes" VALUES(3,1,'epoch','1');
INSERT INTO "trial_user_attributes" VALUES(4,2,'val_accuracy','0.6');
INSERT INTO "trial_user_attributes" VALUES(5,2,'val_loss','1.0');
INSERT INTO "trial_user_attributes" VALUES(6,2,'epoch','1');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.5,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,0.6,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-24 16:26:16.819034','2026-11-24 16:26:16.819034');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-24 16:26:16.853660','2026-11-24 16:26:16.853660');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;