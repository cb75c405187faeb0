-- Whose tokens of CI systems a project trusts. The rule itself is the api's, as JSON.
CREATE TABLE trust_rules (
    id         TEXT   NOT NULL PRIMARY KEY,
    project    TEXT   NOT NULL,
    rule       TEXT   NOT NULL,
    created_by TEXT   NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX trust_rules_by_project ON trust_rules (project);
