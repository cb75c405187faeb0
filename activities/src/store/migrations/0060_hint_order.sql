-- A cell's hints are ordered by its builder's starts and by their number since then, not by any clock: one from a cell whose clock was
-- ahead would otherwise be the newest one for ever. reported_ms is when the api received the hint.
ALTER TABLE cells ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE cells ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;
