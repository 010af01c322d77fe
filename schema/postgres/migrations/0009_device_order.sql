-- The files of a device are listed in the order of their fids. MogileFS's own
-- index, file_on_devid, stays.
-- concurrently: each statement in a transaction of its own; tables stay usable

-- step: drop the index file_on_devid_fid, which an interrupted migration left unfinished
-- needed: EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('file_on_devid_fid') AND NOT indisvalid)
DROP INDEX CONCURRENTLY file_on_devid_fid;

-- step: create index file_on_devid_fid on file_on (devid, fid), concurrently
-- needed: to_regclass('file_on') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('file_on_devid_fid') AND indisvalid)
CREATE INDEX CONCURRENTLY file_on_devid_fid ON file_on (devid, fid);
