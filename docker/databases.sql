-- MLflow and Optuna both keep the version of their tables in a table of the same name.
CREATE DATABASE runs;
CREATE DATABASE sweeps;
