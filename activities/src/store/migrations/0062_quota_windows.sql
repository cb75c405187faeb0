-- How many builds a project has started in the minute that it started one last: what its quota builds_per_minute is checked against.
CREATE TABLE quota_windows (
    project TEXT PRIMARY KEY,
    -- Minutes since 1970.
    minute BIGINT NOT NULL,
    started BIGINT NOT NULL
);
