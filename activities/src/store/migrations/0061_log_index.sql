-- An archived log's steps, so that a build is shown without reading its log, and where its parts begin, so that a follower in the middle
-- does not read what comes before.
ALTER TABLE logs ADD COLUMN steps TEXT;
ALTER TABLE logs ADD COLUMN starts TEXT;
