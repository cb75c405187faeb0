-- Written for SQLite and PostgreSQL alike: TEXT and BIGINT only. Times are milliseconds since 1970; JSON is kept as text.

CREATE TABLE projects (
    name        TEXT   NOT NULL PRIMARY KEY,
    id          TEXT   NOT NULL UNIQUE,
    created_ms  BIGINT NOT NULL,
    settings    TEXT   NOT NULL
);

CREATE TABLE tokens (
    hash        TEXT   NOT NULL PRIMARY KEY,
    label       TEXT   NOT NULL,
    created_ms  BIGINT NOT NULL
);

-- One row a run; the build itself is its newest run.
CREATE TABLE builds (
    workflow_id TEXT   NOT NULL,
    run_id      TEXT   NOT NULL,
    project     TEXT   NOT NULL,
    build_key   TEXT   NOT NULL,
    status      TEXT   NOT NULL,
    input       TEXT   NOT NULL,
    secrets_ref TEXT,
    result      TEXT,
    cell        TEXT,
    created_ms  BIGINT NOT NULL,
    started_ms  BIGINT,
    ended_ms    BIGINT,
    PRIMARY KEY (workflow_id, run_id)
);
CREATE INDEX builds_by_age ON builds (created_ms, run_id);
CREATE INDEX builds_by_project ON builds (project, created_ms, run_id);
CREATE INDEX builds_by_run ON builds (workflow_id, created_ms, run_id);
CREATE INDEX builds_by_status ON builds (status);
CREATE INDEX builds_by_secrets ON builds (secrets_ref);

CREATE TABLE outcomes (
    project      TEXT   NOT NULL,
    build_key    TEXT   NOT NULL,
    workflow_id  TEXT   NOT NULL,
    run_id       TEXT   NOT NULL,
    input_digest TEXT   NOT NULL,
    input        TEXT   NOT NULL,
    result       TEXT   NOT NULL,
    started_ms   BIGINT NOT NULL,
    published_ms BIGINT,
    PRIMARY KEY (project, build_key)
);

CREATE TABLE tags (
    tag         TEXT   NOT NULL PRIMARY KEY,
    started_ms  BIGINT NOT NULL,
    workflow_id TEXT   NOT NULL,
    run_id      TEXT   NOT NULL
);

CREATE TABLE cells (
    cell        TEXT   NOT NULL PRIMARY KEY,
    pool        TEXT   NOT NULL,
    hint        TEXT   NOT NULL,
    reported_ms BIGINT NOT NULL
);
CREATE INDEX cells_by_pool ON cells (pool, cell);

-- Sealed credentials in object storage, so that none is kept longer than its builds need it.
CREATE TABLE sealed (
    secrets_ref TEXT   NOT NULL PRIMARY KEY,
    project_id  TEXT   NOT NULL,
    created_ms  BIGINT NOT NULL
);

-- What is known of a run's log that has left the receiver's disk: how many objects, how many lines, each attempt's last record.
CREATE TABLE logs (
    workflow_id TEXT   NOT NULL,
    run_id      TEXT   NOT NULL,
    parts       BIGINT NOT NULL,
    lines       BIGINT NOT NULL,
    attempts    TEXT   NOT NULL,
    PRIMARY KEY (workflow_id, run_id)
);
