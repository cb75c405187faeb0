-- Pools, warmth, and what lets a reader ask only for what has changed: `seq` rises with each write of a table.

CREATE TABLE pools (
    name    TEXT   NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    view    TEXT   NOT NULL,
    seq     BIGINT NOT NULL
);

-- Where builds of a project succeeded, each with the generation of the cell's cache then.
CREATE TABLE warmth (
    project    TEXT   NOT NULL,
    platform   TEXT   NOT NULL,
    cell       TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    built_ms   BIGINT NOT NULL,
    PRIMARY KEY (project, platform, cell)
);

ALTER TABLE cells ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
CREATE INDEX cells_by_seq ON cells (seq);
ALTER TABLE cell_orders ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
CREATE INDEX cell_orders_by_seq ON cell_orders (seq);

-- The builds that hold or wait for a slot, by cell: counted at each admission.
CREATE INDEX builds_open ON builds (cell, run_id, project) WHERE status IN ('queued', 'running', 'publishing');
