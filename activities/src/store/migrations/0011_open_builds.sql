-- Admission counts open builds, by cell and by project; both counts read an index of open builds alone. With the index by status
-- there, SQLite takes that one and reads the rows.
DROP INDEX builds_by_status;
CREATE INDEX builds_open_by_project ON builds (project, created_ms, run_id, cell) WHERE status IN ('queued', 'running', 'publishing');
