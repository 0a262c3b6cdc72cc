-- The server's role and its two databases: runs, and the accounts of the people.
-- psql --variable password="$DATABASE_PASSWORD" --file database.sql
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
