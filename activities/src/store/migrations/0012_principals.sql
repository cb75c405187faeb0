-- Each token stands for one principal. Tokens of former versions said nothing of whom they stood for, and the settings' token was
-- among them for ever: they are void.
DROP TABLE tokens;
CREATE TABLE access_tokens (
    id         TEXT   NOT NULL PRIMARY KEY,
    hash       TEXT   NOT NULL UNIQUE,
    principal  TEXT   NOT NULL,
    project    TEXT,
    name       TEXT   NOT NULL,
    issued_by  TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    used_ms    BIGINT,
    revoked_ms BIGINT
);
CREATE INDEX access_tokens_by_principal ON access_tokens (principal);
CREATE INDEX access_tokens_by_project ON access_tokens (project);

-- Every cell that a run was placed on, space-separated: whose logs of it are taken. `cell` names the last one only.
ALTER TABLE builds ADD COLUMN placed_on TEXT;
