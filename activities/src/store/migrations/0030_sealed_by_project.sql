-- A reference belongs to the project that stored it: rows are keyed by both.
CREATE TABLE sealed_by_project (
    project_id  TEXT   NOT NULL,
    secrets_ref TEXT   NOT NULL,
    created_ms  BIGINT NOT NULL,
    PRIMARY KEY (project_id, secrets_ref)
);
INSERT INTO sealed_by_project (project_id, secrets_ref, created_ms) SELECT project_id, secrets_ref, created_ms FROM sealed;
DROP TABLE sealed;
ALTER TABLE sealed_by_project RENAME TO sealed;
