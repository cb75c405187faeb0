-- Who did what: rows are added and read, never changed and never deleted.
CREATE TABLE audit (
    id        TEXT   NOT NULL PRIMARY KEY,
    at_ms     BIGINT NOT NULL,
    principal TEXT   NOT NULL,
    token     TEXT   NOT NULL,
    action    TEXT   NOT NULL,
    subject   TEXT   NOT NULL,
    project   TEXT,
    result    TEXT   NOT NULL,
    note      TEXT   NOT NULL
);
CREATE INDEX audit_by_time ON audit (at_ms, id);
CREATE INDEX audit_by_project ON audit (project, at_ms, id);
